"""What concerns the whole server: drain, signals, workers, readiness, and the files for clients."""
