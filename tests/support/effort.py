"""How much the tests try: a fifth by default, everything with `EFFORT=full scripts/test unit`, as in CI."""

import os

from hypothesis import HealthCheck, settings

IS_FULL = os.environ.get("EFFORT") == "full"
"""Whether to try everything, as `.ci/run` does on the newest Python."""


def some(*, of: int) -> int:
    """Return how many to try here of the full number."""
    return of if IS_FULL else max(10, of // 5)


settings.register_profile(
    "here",
    max_examples=some(of=100),  # a hundred is what Hypothesis tries by itself
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # the deadline and the check measure the machine
)
settings.load_profile("here")
