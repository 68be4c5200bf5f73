"""Channels: the definition with its handlers, the socket for handlers, and a client's joined channel."""
