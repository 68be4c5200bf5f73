"""Channels: the definition with its handlers, the socket that handlers see, and a client's joined channel."""
