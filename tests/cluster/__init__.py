"""A cluster on one machine: real servers of one application over a real engine, clients of all of them, and faults."""
