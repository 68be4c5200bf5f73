"""Presence: who is on a topic. The state that processes can share is pure; `Presence` hangs it on sockets.

Source: Phoenix's `presence.ex`, and the design of `Phoenix.Tracker` in phoenix_pubsub.
"""
