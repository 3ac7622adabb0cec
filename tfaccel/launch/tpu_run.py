"""`tfaccel tpu run`: its options for renting a TPU for a script."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tfaccel.errors import LaunchError
from tfaccel.launch.gcloud import TpuJob
from tfaccel.launch.tpu_vm import run_if_agreed, shown, with_servers

_EPILOG = """exit codes: the script's own; 2 for usage errors, errors of gcloud, and without --yes

example:
  tfaccel tpu run --name mine --zone us-west4-a --accelerator-type v5litepod-4 --dry-run \\
      examples/digits.py -- --strategy=tpu"""


def main(argv: Sequence[str]) -> int:
    """Runs a script on a TPU of Google Cloud; without ``--yes`` it only prints the commands.

    Args:
        argv: the arguments after ``tfaccel tpu run``.

    Returns:
        The script's exit code.

    Raises:
        LaunchError: gcloud is missing, or creates no TPU.
    """
    args = _parser().parse_args(argv)
    job = _job(args)
    if args.dry_run:
        sys.stdout.write(shown(job, args.keep))
        return 0
    return run_if_agreed(job, keep=args.keep, agreed=args.yes)


def _job(args: argparse.Namespace) -> TpuJob:
    if not args.script.is_file():
        raise LaunchError(f"tfaccel: there is no script {str(args.script)!r}; give its path.")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", args.name):
        raise LaunchError(
            f"tfaccel: --name is {args.name!r}; expected lower-case letters, digits and hyphens, "
            "as Google Cloud requires."
        )
    environment = []
    for one in args.env:
        name, equals, value = one.partition("=")
        if not name.isidentifier() or not equals:
            raise LaunchError(f"tfaccel: --env is {one!r}; expected NAME=VALUE.")
        environment.append((name, value))
    arguments = args.arguments[1:] if args.arguments[:1] == ["--"] else args.arguments
    job = TpuJob(
        script=args.script,
        arguments=tuple(arguments),
        name=args.name,
        zone=args.zone,
        project=args.project,
        accelerator=args.accelerator_type,
        runtime=args.runtime_version,
        queued=args.queued,
        spot=args.spot,
        install=tuple(args.install),
        environment=tuple(environment),
    )
    return with_servers(job)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfaccel tpu run",
        description="Rents a TPU of Google Cloud, runs a script on it, and deletes the TPU.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", required=True, help="name of the TPU to create")
    parser.add_argument("--zone", required=True, help="Google Cloud zone, such as us-west4-a")
    parser.add_argument("--project", help="Google Cloud project; default: the setting of gcloud")
    parser.add_argument(
        "--accelerator-type", required=True, help="type of the TPU, such as v5litepod-4 or v6e-8"
    )
    parser.add_argument(
        "--runtime-version", help="runtime version of the TPU VM; default: by accelerator"
    )
    parser.add_argument("--queued", action="store_true", help="request it as a queued resource")
    parser.add_argument("--spot", action="store_true", help="use a spot (preemptible) TPU")
    parser.add_argument("--keep", action="store_true", help="do not delete the TPU at the end")
    parser.add_argument(
        "--install",
        nargs="*",
        default=TpuJob.install,
        help="packages that pip installs besides TensorFlow; default: this version of tfaccel",
    )
    parser.add_argument(
        "--env", action="append", default=[], help="environment variable of the script, NAME=VALUE"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands, and run nothing"
    )
    parser.add_argument("--yes", action="store_true", help="run the commands: a TPU costs money")
    parser.add_argument("script", type=Path)
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="arguments of the script, after --"
    )
    return parser
