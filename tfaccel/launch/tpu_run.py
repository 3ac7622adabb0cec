"""`tfaccel tpu run`: the options of its own with which a TPU is rented for a script."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tfaccel.errors import LaunchError
from tfaccel.launch.gcloud import TpuJob
from tfaccel.launch.tpu_vm import run_if_agreed, shown, with_servers

_EPILOG = """exit codes: the script's own; 2 for a mistake, for gcloud's refusal, and without --yes

example:
  tfaccel tpu run --name mine --zone us-west4-a --accelerator-type v5litepod-4 --dry-run \\
      examples/digits.py -- --strategy=tpu"""


def main(argv: Sequence[str]) -> int:
    """Runs a script on a TPU of Google Cloud; without ``--yes`` it only says how.

    Args:
        argv: the words after ``tfaccel tpu run``.

    Returns:
        The script's exit code.

    Raises:
        LaunchError: gcloud is missing, or makes no TPU.
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
            f"tfaccel: --name is {args.name!r}, expected lower-case letters, digits and hyphens, "
            "as Google Cloud takes them."
        )
    environment = []
    for one in args.env:
        name, equals, value = one.partition("=")
        if not name.isidentifier() or not equals:
            raise LaunchError(f"tfaccel: --env is {one!r}, expected NAME=VALUE.")
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
    parser.add_argument("--name", required=True, help="of the TPU to make")
    parser.add_argument("--zone", required=True, help="such as us-west4-a")
    parser.add_argument("--project", help="gcloud's own setting where not given")
    parser.add_argument("--accelerator-type", required=True, help="such as v5litepod-4 or v6e-8")
    parser.add_argument("--runtime-version", help="of the TPU VM; by accelerator where not given")
    parser.add_argument("--queued", action="store_true", help="wait in Google Cloud's queue")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    parser.add_argument("--keep", action="store_true", help="do not delete the TPU at the end")
    parser.add_argument(
        "--install",
        nargs="*",
        default=TpuJob.install,
        help="what pip installs besides TensorFlow; this version of tfaccel where not given",
    )
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE, for the script")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    parser.add_argument("--yes", action="store_true", help="run them: a TPU costs money")
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script, after --")
    return parser
