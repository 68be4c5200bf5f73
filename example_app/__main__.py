"""Run the chat: `python -m example_app --port 8000`."""

import argparse

import uvicorn

from starlette_channels.cli import SETTINGS


def main() -> None:
    """Read the options, print the address, serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description="A chat on starlette_channels.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=8000, type=int, help="port to listen on (default: %(default)s)")
    options = parser.parse_args()
    print(f"The chat is at http://{options.host}:{options.port} - open it in two windows.", flush=True)
    uvicorn.run("example_app.app:app", host=options.host, port=options.port, log_level="warning", **SETTINGS)


if __name__ == "__main__":
    main()
