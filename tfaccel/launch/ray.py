"""Ray jobs: a program of a few lines that runs the script in Ray Train's TensorflowTrainer.

https://docs.ray.io/en/latest/train/api/doc/ray.train.tensorflow.TensorflowTrainer.html
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from tfaccel.errors import LaunchError
from tfaccel.launch.data_service import DATA_WORKERS
from tfaccel.launch.options import CPUS, GPUS, NAME, Option, Options
from tfaccel.launch.profile import PROFILE
from tfaccel.launch.show import CHIEF, SHOW
from tfaccel.launch.spec import Job

HELP = "Ray Train's TensorflowTrainer"
SCRIPT_IS_LOCAL = True
COUNTS_WORKERS = True
TAKES_RANGES = True

ADDRESS = Option(
    "--address", "address of the Ray cluster; default: RAY_ADDRESS, else this machine", "A"
)
STORAGE = Option("--storage", "where Ray keeps the run's state, for all nodes", "PATH")
WORKING_DIR = Option(
    "--working-dir", "directory to copy to all nodes; default: they share this one", "D"
)
OPTIONS: tuple[Option, ...] = (
    *(NAME, CPUS, GPUS, SHOW, PROFILE, DATA_WORKERS),
    *(ADDRESS, STORAGE, WORKING_DIR),
)

_PROGRAM = """\
import os
import secrets

os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # scripts find their files

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer

from tfaccel.launch.ray_worker import fit, run_worker, tensorflow_config

CONFIG = {config}


def trainer(name):
    return TensorflowTrainer(
        run_worker,
        train_loop_config={{"secret": secrets.token_hex(16), **CONFIG}},
        tensorflow_config=tensorflow_config(),
        scaling_config=ScalingConfig({scaling}),
        run_config=RunConfig(
            name=name,
            storage_path={storage!r},
            failure_config=FailureConfig(max_failures={max_failures}),
        ),
    )


ray.init(address={address}{runtime_env})
raise SystemExit(fit(trainer, {name!r}))
"""


def render(job: Job, options: Options) -> str:
    """The program.

    Raises:
        LaunchError: an option that Ray would reject.
    """
    folder = options["working_dir"]
    config = {
        "script": list(job.script),
        "module": job.module,
        "env": job.variables(),
        "log_dir": job.log_dir and str(Path(job.log_dir).absolute()),
        "show": CHIEF if job.show is None else job.show,
        "folder": os.getcwd() if folder is None else None,
        **({"data_workers": job.data_workers} if job.data_workers else {}),
    }
    resources: dict[str, Any] = {}
    if options["cpus"] is not None:
        resources["CPU"] = _number(options["cpus"])
    if options["gpus"] is not None:
        resources["GPU"] = options["gpus"]
    number = job.workers if job.min_workers is None else (job.min_workers, job.workers)
    scaling = [f"num_workers={number}", f"use_gpu={options['gpus'] is not None}"]
    scaling += [f"resources_per_worker={resources!r}"] if resources else []
    address = 'os.environ.get("RAY_ADDRESS", "local")'
    uploaded = {"working_dir": folder and str(Path(folder).absolute())}
    return _PROGRAM.format(
        config=_indented(config),
        scaling=", ".join(scaling),
        storage=options["storage"],
        max_failures=job.max_restarts,
        address=repr(options["address"]) if options["address"] else address,
        runtime_env=f", runtime_env={uploaded!r}" if folder is not None else "",
        name=job.name,
    )


def launch(job: Job, options: Options) -> int:
    """Runs the program with this Python, replacing this process."""
    program = render(job, options)
    if importlib.util.find_spec("ray") is None:
        raise LaunchError(
            "Ray is not installed; expected Ray Train: pip install 'tfaccel[ray]'; --dry-run "
            "prints the program"
        )
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-c", program])


def _indented(config: dict[str, Any]) -> str:
    """A dict as Python source, one entry per line."""
    lines = "".join(f"    {key!r}: {value!r},\n" for key, value in config.items())
    return f"{{\n{lines}}}"


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise LaunchError(f"--cpus is {text!r}; expected a number of cores above 0, such as 4")
    return int(number) if number == int(number) else number
