"""TODO transports.longpoll"""
