"""Engines: one module for each system that passes bytes between processes, imported by the name in a URL."""
