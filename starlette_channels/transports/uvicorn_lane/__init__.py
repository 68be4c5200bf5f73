"""The fast lane: frames go between uvicorn's transport and a connection without ASGI messages."""
