"""Long-polling, for clients whose WebSocket does not get through."""
