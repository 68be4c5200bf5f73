"""Messages on the wire: serializers, payload types, topics, and the protocol. No I/O, no clock."""
