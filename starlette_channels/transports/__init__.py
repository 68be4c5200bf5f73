"""Transports: how a connection reaches its client."""

HANGING_SECONDS = 0.1
"""How long a client may not take what is sent before what waits counts against it: a burst alone is no reason."""

STEP_SECONDS = HANGING_SECONDS / 10
"""We wait in such steps. When the event loop stalls, only one of them counts, and whoever was ready has a turn."""

TURNS_TO_READ = 10
"""So many steps we wait before a client counts as silent: the event loop reads meanwhile what it may have sent."""

BEHIND_BYTES = 65_536
"""When so much waits, the client is behind; servers and kernels keep about as much below us."""

CLOSE_SECONDS = 2.0
"""How long the last frames and the close may take to leave."""
