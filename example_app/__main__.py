"""Run the chat: `python -m example_app --port 8000 --workers 4`."""

import argparse
import os
import tempfile
from pathlib import Path

import uvicorn

from starlette_channels.cli import SETTINGS


def main() -> None:
    """Read the options, print the address, serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m example_app", description="A chat on starlette_channels.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=8000, type=int, help="port to listen on (default: %(default)s)")
    parser.add_argument("--workers", default=1, type=int, help="number of processes (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chat-") as folder:
        if options.workers > 1:  # shared broker and history, unless the environment sets them
            os.environ.setdefault("CHAT_BROKER", f"zenoh://?prefix={Path(folder).name}")
            os.environ.setdefault("CHAT_HISTORY", str(Path(folder, "history.sqlite")))
        print(f"The chat is at http://{options.host}:{options.port} - open it in two windows.", flush=True)
        uvicorn.run("example_app.app:app", log_level="warning", **vars(options), **SETTINGS)


if __name__ == "__main__":
    main()
