"""What runs inside Ray: the script, once in each worker of Ray Train.

The script gets its own process. Ray calls this in a thread, in which a script could set no signal
handlers, and where its exit code would be lost.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from tfaccel.cluster import job_secret
from tfaccel.errors import LaunchError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED
from tfaccel.launch.failure import error_tail
from tfaccel.launch.job import log_message
from tfaccel.launch.ray_notice import Notice, handle_sigterm
from tfaccel.launch.script_arguments import python_command
from tfaccel.launch.show import shown_by
from tfaccel.launch.worker import run


def fit(make_trainer: Callable[[str], Any], name: str) -> int:
    """Trains until the job is done; restarts it when its workers have saved and exited.

    Args:
        make_trainer: makes a trainer for a run of that name.
        name: of the first run.

    Returns:
        0, `exit_codes.NO_PROGRESS`, or 1 when more workers have failed than Ray may start again:
        each preemption resets the count.
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
        log_message("restarting all workers: they were preempted and saved a checkpoint")


def tensorflow_config() -> Any:
    """Ray Train's own settings for TensorFlow, with which workers pass SIGTERM on to the script."""
    from ray.train.tensorflow import TensorflowConfig

    ours: Any = TensorflowConfig().backend_cls

    class Backend(ours):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(handle_sigterm)  # in the main thread, while the script has another

    class Config(TensorflowConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config()


def run_worker(config: Mapping[str, Any]) -> int:
    """Runs the script in one worker.

    Args:
        config: its ``script``, whether that is a ``module``, its variables ``env``, a ``log_dir``,
            which workers to ``show``, the ``folder`` to run in, or None for Ray's, the job's
            ``secret``, and perhaps a number of ``data_workers``.

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
    notice = Notice(getattr(ray.train, "get_preemption_info", None))
    ended = run(
        python_command(config["script"], module=config["module"], python=sys.executable),
        script_environment(os.environ, config["env"], job, config["secret"]),
        rank,
        config["log_dir"],
        shown_by(config["show"]),
        received=notice.listening,
        data_workers=config.get("data_workers", 0),
    )
    if ended.code in (0, PREEMPTED, NO_PROGRESS):
        return ended.code
    if notice.preempted:  # Ray counts no failure of a node that is taken away.
        return PREEMPTED
    words = "\n".join(error_tail(ended.stderr))
    raise LaunchError(
        f"rank {rank} failed with exit code {ended.code}; the end of its stderr:\n{words}"
    )


def script_environment(
    base: Mapping[str, str], variables: Mapping[str, str], ray_job: str, secret: str
) -> dict[str, str]:
    """The script's variables.

    >>> base = {"TF_CONFIG": "{}", "TF_USE_LEGACY_KERAS": "1"}
    >>> sorted(script_environment(base, {"A": "b"}, "01", "5e"))
    ['A', 'TFACCEL_JOB_ID', 'TFACCEL_JOB_SECRET', 'TF_CONFIG']
    """
    environment = dict(base)
    environment.pop("TF_USE_LEGACY_KERAS", None)  # Ray Train sets it, and tfaccel is for Keras 3.
    environment.update(variables)
    # All workers of one attempt have the same list of addresses, and no other attempt has it.
    cluster = environment.get("TF_CONFIG", "").partition('"task"')[0]
    environment["TFACCEL_JOB_ID"] = f"ray-{ray_job}-{zlib.crc32(cluster.encode()):08x}"
    environment[job_secret.VARIABLE] = secret
    return environment
