"""Play as many histories as are wanted, or one again: `python -m tests.simulation SEED`; see the package."""

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
            print(f"seed {seed}: python -m tests.simulation {seed}", file=sys.stderr)
            wrong.append(seed)
    return wrong


def main() -> int:
    """Play the histories, and say how many went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="play this one only")
    parser.add_argument("--histories", type=int, default=5_000)
    parser.add_argument("--from", dest="first", type=int, default=0)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.histories)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    wrong = failures(seeds)
    print(f"{len(seeds)} histories, {len(wrong)} went wrong {wrong or ''}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
