"""Play as many histories as are wanted; see the package."""

import argparse
import sys
import traceback

from tests.simulation.world import World


def failures(seeds: range) -> list[int]:
    """Play a history for each seed; return those that went wrong, having said why."""
    wrong: list[int] = []
    for seed in seeds:
        try:
            World(seed).run()
        except Exception:  # noqa: BLE001 - whatever it was, it is the outcome of this history
            traceback.print_exc()
            print(f"seed {seed}: python -m tests.simulation --from {seed} --histories 1", file=sys.stderr)
            wrong.append(seed)
    return wrong


def main() -> int:
    """Play the histories, and say how many went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=5_000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    options = parser.parse_args()
    wrong = failures(range(options.first, options.first + options.histories))
    print(f"{options.histories} histories, {len(wrong)} went wrong {wrong or ''}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
