"""Transports: how a connection reaches its client."""
