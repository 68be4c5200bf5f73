"""TODO pubsub.engines"""
