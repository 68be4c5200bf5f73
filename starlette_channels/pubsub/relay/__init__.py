"""TODO pubsub.relay"""
