"""Tasks, cancellation and timers on asyncio and trio."""
