"""The command line: `python -m benchmarks` measures, and shows results."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks import attack, chart, drain, presence, relays, report, results, running, soak, workers
from benchmarks.compiler import CannotCompile
from benchmarks.machine import Unfit


def print_table(options: Namespace) -> int:
    """Print results as a table in Markdown."""
    print(report.markdown(results.load(options.results)))
    return 0


def write_chart(options: Namespace) -> int:
    """Draw results as SVG."""
    options.svg.write_text(chart.svg(results.load(options.results)))
    return 0


def parser() -> ArgumentParser:
    """Build the parser of commands and options."""
    main = ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = main.add_subparsers(required=True)

    command = commands.add_parser("run", help="measure, print a table and save everything (what is done by default)")
    running.add_options(command)
    command.set_defaults(call=running.run)

    command = commands.add_parser("soak", help="let clients come and go, a million by default, and see what is left")
    soak.add_options(command)
    command.set_defaults(call=soak.run)

    command = commands.add_parser("attack", help="attack a server, and see what a hundred honest clients notice of it")
    attack.add_options(command)
    command.set_defaults(call=attack.run)

    command = commands.add_parser("relays", help="what it costs to reach another process, engine by engine")
    relays.add_options(command)
    command.set_defaults(call=relays.run)

    command = commands.add_parser("workers", help="what a broadcast costs when subscribers are spread over processes")
    workers.add_options(command)
    command.set_defaults(call=workers.run)

    command = commands.add_parser("presence", help="many come into one hall at once, and others come and go")
    presence.add_options(command)
    command.set_defaults(call=presence.run)

    command = commands.add_parser("drain", help="send a crowd from one server to another, and see when it arrives")
    drain.add_options(command)
    command.set_defaults(call=drain.run)

    command = commands.add_parser("table", help="results as a table in Markdown")
    command.add_argument("results", type=Path)
    command.set_defaults(call=print_table)

    command = commands.add_parser("chart", help="results as a picture")
    command.add_argument("results", type=Path)
    command.add_argument("--svg", type=Path, default=chart.PATH)
    command.set_defaults(call=write_chart)
    return main


def main(arguments: list[str]) -> int:
    """Run the command line."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["run", *arguments]
    options = parser().parse_args(arguments)
    try:
        return options.call(options)
    except (CannotCompile, Unfit) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
