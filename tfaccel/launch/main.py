"""The command `tfaccel launch`: one set of options, whichever engine starts the workers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tfaccel.errors import LaunchError
from tfaccel.launch.engines import ENGINES, Engine
from tfaccel.launch.options import Option, values_of
from tfaccel.launch.profile import variables
from tfaccel.launch.script_arguments import add_command, script_of, variable
from tfaccel.launch.show import shown_by
from tfaccel.launch.spec import (
    START_TIMEOUT_S,
    Job,
    check_name,
    default_name,
    numbers_of_workers,
)

_EPILOG = """exit codes: that of the worker that failed first; 33 preempted, checkpoint saved
(restarted); 93 no progress (not restarted); 2 usage error

`--dry-run` prints what would run, on any machine."""


def main(argv: Sequence[str]) -> int:
    """Starts the workers of a job, or prints what would start them.

    Args:
        argv: the arguments after ``tfaccel launch``.

    Returns:
        The exit code, as far as the engine reports it.

    Raises:
        LaunchError: invalid options, or a job that cannot be started.
    """
    every = {option.dest: option for engine in ENGINES.values() for option in engine.OPTIONS}
    parser = _parser()
    parsed = parser.parse_args(argv)
    engine = ENGINES[parsed.engine]
    engine_options = {dest: value for dest, value in vars(parsed).items() if dest in every}
    options = values_of(parsed.engine, engine.OPTIONS, engine_options, every)
    script = tuple(script_of(parser, parsed, is_here=engine.SCRIPT_IS_LOCAL))
    min_workers, workers = _workers(parsed, engine)
    profile = options.get("profile")
    profile_env = {} if profile is None else variables(profile, parsed.log_dir)
    job = Job(
        script=script,
        module=parsed.module,
        name=check_name(options.get("name") or default_name(script, parsed.module)),
        workers=workers,
        min_workers=min_workers,
        env=(*profile_env.items(), *parsed.env),
        log_dir=parsed.log_dir,
        max_restarts=parsed.max_restarts,
        start_timeout_s=parsed.start_timeout,
        show=options.get("show"),
        data_workers=options.get("data_workers") or 0,
    )
    if job.show is not None:
        shown_by(job.show, workers)
    if job.max_restarts < 0:
        raise LaunchError(f"--max-restarts is {job.max_restarts}; expected 0 or more")
    if parsed.dry_run:
        sys.stdout.write(engine.render(job, options))
        return 0
    return engine.launch(job, options)


def _workers(parsed: argparse.Namespace, engine: Engine) -> tuple[int | None, int]:
    """The minimum number of workers, where a range is given, and the maximum."""
    nproc: str | None = parsed.nproc
    if not engine.COUNTS_WORKERS:
        if nproc is not None:
            raise LaunchError(
                f"--nproc is {nproc}, and --engine {parsed.engine} takes as many workers as its "
                "machines have; leave it out"
            )
        return None, 1
    if nproc is None:
        raise LaunchError("--nproc is not given; expected the number of workers")
    fewest, most = numbers_of_workers(nproc)
    if fewest is not None and not engine.TAKES_RANGES:
        raise LaunchError(
            f"--nproc is {nproc}, and a job of --engine {parsed.engine} always has the same number "
            "of workers; expected one number"
        )
    return fewest, most


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfaccel launch",
        usage="tfaccel launch [--engine ENGINE] --nproc N [OPTION ...] [-m] SCRIPT [ARG ...]",
        description="Start and restart the workers of a job on this machine or on a cluster.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="; ".join(f"{name}: {engine.HELP}" for name, engine in ENGINES.items()),
    )
    parser.add_argument(
        "--nproc",
        metavar="N",
        help="number of workers, or MIN:MAX for an elastic range",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, and run nothing"
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=START_TIMEOUT_S,
        metavar="S",
        help="how long the workers wait for each other, in seconds (%(default)g)",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="how often to restart all workers after one has failed (%(default)d)",
    )
    parser.add_argument("--log-dir", metavar="D", help="also write D/rank-N.log, one per worker")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        type=variable,
        metavar="K=V",
        help="set a variable for the workers; may be given again",
    )
    for title, options in _groups().items():
        group = parser.add_argument_group(title)
        for option in options:
            option.add_to(group)
    add_command(parser)
    return parser


def _groups() -> dict[str, list[Option]]:
    """The engines' own options, under the names of the engines that take them."""
    takers: dict[Option, list[str]] = {}
    for name, engine in ENGINES.items():
        for option in engine.OPTIONS:
            takers.setdefault(option, []).append(name)
    groups: dict[str, list[Option]] = {}
    for option, names in takers.items():
        groups.setdefault(f"for --engine {', '.join(names)}", []).append(option)
    return groups
