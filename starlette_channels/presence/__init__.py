"""Presence: the list of clients on a topic. The replicated state does no I/O; `Presence` connects it to sockets.

Source: Phoenix's `presence.ex`, and the design of `Phoenix.Tracker` in phoenix_pubsub.
"""
