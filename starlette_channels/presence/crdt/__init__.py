"""TODO presence.crdt"""
