"""Publish and subscribe: the broker, fan-out in one event loop, commands, and publishing from outside a server."""
