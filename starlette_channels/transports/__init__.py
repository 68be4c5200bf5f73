"""Transports: how a connection reaches its client."""

HANGING_SECONDS = 0.1
"""How long a client may not take what is sent before what waits counts against it: a burst alone is no reason."""

CLOSE_SECONDS = 2.0
"""How long the last frames and the close may take to leave."""
