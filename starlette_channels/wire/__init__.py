"""TODO wire"""
