"""A connection: one client, its rate limits, its identity and its expiry, and the contract of its transport."""
