"""The wire format: messages, serializers, payload types, topics and the protocol. No I/O, no clock."""
