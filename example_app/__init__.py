"""A chat that shows what starlette_channels does: `python -m example_app`."""
