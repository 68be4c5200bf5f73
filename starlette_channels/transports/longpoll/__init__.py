"""Long-polling, for clients that cannot open a WebSocket."""
