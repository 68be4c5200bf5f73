"""One application for each server of the benchmark, written as the documentation of its library would have it."""
