"""Benchmarks: the server's cost of a delivery, a reply, a join and an idle connection, beside C and other libraries."""
