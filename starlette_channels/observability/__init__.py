"""Error log, log context, redaction of secrets, and statistics."""
