"""The relay: broadcasts and commands between processes, numbered, over an engine."""
