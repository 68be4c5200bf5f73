"""TODO handshake"""
