"""How much the tests try: all of it in CI, a part of it at a desk; `CI=1 scripts/test unit` does as CI does."""

import os

from hypothesis import HealthCheck, settings

IS_CI = bool(os.environ.get("CI"))
"""GitHub sets the variable, and so does `.ci/run`."""


def some(*, of: int) -> int:
    """Return how many to try here of the number that CI tries."""
    return of if IS_CI else max(10, of // 5)


settings.register_profile(
    "here",
    max_examples=some(of=100),  # a hundred is what Hypothesis tries by itself
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # the deadline and the check measure the machine
)
settings.load_profile("here")
