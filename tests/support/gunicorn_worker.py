"""A worker of gunicorn that serves channels on the fast lane, as the guide has it; it also says what channels log."""

import logging
from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker  # pyright: ignore[reportMissingTypeStubs]

from starlette_channels.cli import SETTINGS

logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


class ChannelsWorker(UvicornWorker):
    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleVariableOverride] - as theirs
        **UvicornWorker.CONFIG_KWARGS,
        **SETTINGS,
    }
