"""TODO channels"""
