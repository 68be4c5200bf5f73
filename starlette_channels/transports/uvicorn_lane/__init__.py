"""TODO transports.uvicorn_lane"""
