"""TODO pubsub"""
