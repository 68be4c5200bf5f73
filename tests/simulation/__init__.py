"""Histories of a cluster, each made up from a seed: `python -m tests.simulation --histories 5000`.

Nodes come, track, untrack, talk, hang, crash, start anew and take leave, while the network between them loses, delays,
reorders and doubles what they send, and falls apart into islands. The clock is virtual. What is played is the code that
runs: presence, its messages in pieces, and broadcasts, all with the numbers of the relay. All the while nobody may be
told of somebody twice, nobody comes back who is over, and what is said to be lost is what is lost, to the number.

In the end the network is good, and what is promised has its time: everybody is known, and the dead are not; all that
was lost is reported; who then comes, goes, hangs or starts anew is seen to do so; and who has nothing to say is quiet.
"""
