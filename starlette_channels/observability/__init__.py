"""TODO observability"""
