"""Histories of a cluster, each made up from a seed: `python -m tests.simulation --histories 5000`.

Nodes come, track, untrack, talk, hang, crash, start anew and take leave, while the network between them loses, delays,
reorders and doubles what they send, and falls apart into islands. The clock is virtual. What is played is the code that
runs: presence, its messages in pieces, and broadcasts, all with the numbers of the relay. In the end the network is
good for a while, and then everybody must know of everybody's presences, and what was lost must be what was reported.
"""
