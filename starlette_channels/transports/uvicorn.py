"""The fast lane of uvicorn: `--ws starlette_channels.transports.uvicorn:FastLane`, and `--http` with `:SlicedHTTP`."""

from starlette_channels.transports.uvicorn_lane.handshake import FastLane
from starlette_channels.transports.uvicorn_lane.http_slices import SlicedHTTP

__all__ = ["FastLane", "SlicedHTTP"]
