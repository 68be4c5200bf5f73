"""The replicated state of presence, a CRDT. No I/O, no clock."""
