"""TODO connection"""
