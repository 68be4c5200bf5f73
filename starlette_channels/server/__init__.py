"""The whole server: drain, stop signals, workers, readiness, and the files for clients."""
