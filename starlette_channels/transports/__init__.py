"""Transports: how a connection reaches its client."""

HANGING_SECONDS = 0.1
"""Time without progress after which a client with a full queue counts as slow; a burst alone is no reason."""

STEP_SECONDS = HANGING_SECONDS / 10
"""Length of the steps of that time: a stall of the event loop counts as one step, so clients still get a turn."""

TURNS_TO_READ = 10
"""Steps before a silent client is closed: meanwhile the event loop reads messages that may lie in the socket."""

BEHIND_BYTES = 65_536
"""A client with more bytes queued counts as behind; servers and kernels buffer about as much below this queue."""

CLOSE_SECONDS = 2.0
"""Time for the last frames and the close to be sent."""
