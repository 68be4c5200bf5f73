"""Entry point of `python -m starlette_channels`."""

from starlette_channels.cli import main

if __name__ == "__main__":  # worker processes import this module as well
    main()
