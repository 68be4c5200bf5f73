"""Tasks, cancellation and timers on the event loops of asyncio and trio."""
