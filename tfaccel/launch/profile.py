"""`--profile`: which steps every worker profiles, passed in their environment."""

from __future__ import annotations

from tfaccel.errors import LaunchError, StrategyError
from tfaccel.launch.options import Option
from tfaccel.strategies import options

PROFILE = Option(
    "--profile",
    "write a TensorBoard profile of these steps of every worker to the directory of --log-dir, "
    "such as 10:20, counted from 1",
    "FIRST:LAST",
)


def variables(steps: str, log_dir: str | None) -> dict[str, str]:
    """The environment variables that configure it in all workers.

    Args:
        steps: the value of `--profile`.
        log_dir: where to write.

    Raises:
        LaunchError: there is no directory to write to, or `steps` is invalid.

    >>> variables("10:20", "logs")
    {'TFACCEL_PROFILE': '10:20', 'TFACCEL_PROFILE_DIR': 'logs'}
    """
    try:
        options.resolve({"profile": steps}, {})
    except StrategyError as error:
        raise LaunchError(f"--{str(error).removeprefix('tfaccel: ')}") from error
    if log_dir is None:
        raise LaunchError(
            "--profile is given, and --log-dir is not; expected a directory to write to"
        )
    return {"TFACCEL_PROFILE": steps, "TFACCEL_PROFILE_DIR": log_dir}
