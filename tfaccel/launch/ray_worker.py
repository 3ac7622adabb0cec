"""What runs inside Ray: the script, once in each worker of Ray Train.

The script gets a process of its own. Ray calls us in a thread, in which a script could set no
signal handlers, and where its exit code would be lost.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from tfaccel.errors import LaunchError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED
from tfaccel.launch.command import python_command
from tfaccel.launch.failure import error_tail
from tfaccel.launch.job import log_message
from tfaccel.launch.worker import run


def fit(make_trainer: Callable[[str], Any], name: str) -> int:
    """Trains until the job is done; when its workers have saved and left, again.

    Args:
        make_trainer: makes a trainer, from the name of a run.
        name: of the first run.

    Returns:
        0, `exit_codes.NO_PROGRESS`, or 1 when more workers have failed than Ray may start again:
        after each preemption it counts anew.
    """
    from ray.train import TrainingFailedError

    attempt = 0
    while True:
        try:
            result = make_trainer(name if not attempt else f"{name}-{attempt}").fit()
        except TrainingFailedError as error:
            log_message(f"training has failed\n{error}")
            return 1
        code: int = result.return_value
        if code != PREEMPTED:
            return code
        attempt += 1
        log_message("starting all workers again: they were told to stop and have saved")


def run_worker(config: Mapping[str, Any]) -> int:
    """Runs the script in one worker.

    Args:
        config: its ``script``, whether that is a ``module``, its variables ``env``, a ``log_dir``,
            and the ``folder`` to run in, or None for Ray's.

    Returns:
        The exit code, if it is one of those that Ray's failure policy must not count.

    Raises:
        LaunchError: the script has failed.
    """
    import ray.train

    rank: int = ray.train.get_context().get_world_rank()
    if config["folder"] is not None:
        os.chdir(config["folder"])
    job = ray.get_runtime_context().get_job_id()
    code, stderr = run(
        python_command(config["script"], module=config["module"], python=sys.executable),
        script_environment(os.environ, config["env"], job),
        rank,
        config["log_dir"],
        forward_signals=False,
    )
    if code in (0, PREEMPTED, NO_PROGRESS):
        return code
    words = "\n".join(error_tail(stderr))
    raise LaunchError(f"rank {rank} failed with exit code {code}; the end of its stderr:\n{words}")


def script_environment(
    base: Mapping[str, str], variables: Mapping[str, str], ray_job: str
) -> dict[str, str]:
    """The script's variables.

    >>> made = script_environment({"TF_CONFIG": "{}", "TF_USE_LEGACY_KERAS": "1"}, {"A": "b"}, "01")
    >>> sorted(made)
    ['A', 'TFACCEL_JOB_ID', 'TF_CONFIG']
    """
    made = dict(base)
    made.pop("TF_USE_LEGACY_KERAS", None)  # Ray Train sets it, and tfaccel is for Keras 3.
    made.update(variables)
    # All workers of one try have the same list of addresses, and no other try has it.
    cluster = made.get("TF_CONFIG", "").partition('"task"')[0]
    made["TFACCEL_JOB_ID"] = f"ray-{ray_job}-{zlib.crc32(cluster.encode()):08x}"
    return made
