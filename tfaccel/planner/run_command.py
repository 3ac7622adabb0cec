"""The command line that runs a candidate."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tfaccel.planner.candidates import Candidate
from tfaccel.planner.device_catalogue import Machines


def command(target: str, candidate: Candidate, machines: Machines, batch: int) -> str:
    """The command line that trains with a candidate; "" for a model without a file.

    A script with tfaccel's flags is run itself. Any other file's builder is trained for a few steps
    on synthetic data by `tfaccel.planner.trial`.

    Args:
        target: ``path.py:function`` or a ``.keras`` file.
        candidate: what runs.
        machines: that it runs on.
        batch: rows of the global batch.
    """
    path = target.rpartition(":")[0] or target
    if not Path(path).is_file():
        return ""
    if candidate.strategy == "tpu" and candidate.devices > 1 and candidate.hosts == 1:
        options = ["--strategy=tpu"]
    else:
        options = [f"--strategy={candidate.strategy}"]
    per_host = candidate.devices // candidate.hosts
    if machines.device.kind == "cpu":
        options += ["--device_type=cpu", f"--devices={per_host}"]
    elif machines.device.kind == "gpu":
        options += [f"--devices={per_host}"]
    if candidate.mesh is not None:
        options += [f"--mesh={candidate.mesh}"]
        options += [f"--layouts={candidate.layouts}"] if candidate.layouts != "auto" else []
    if candidate.precision != "float32":
        options += [f"--precision={candidate.precision}"]
    if candidate.rematerialized:
        options += ["--rematerialization=full"]
    launcher = "python"
    if candidate.hosts > 1:
        launcher = f"tfaccel launch --nproc {candidate.hosts}"
    script = _flags_of(path)
    if script is not None and candidate.accumulate == 1:
        rows = [f"--batch_size={batch}"] if "batch_size" in script else []
        return shlex.join([*launcher.split(), path, *options, *rows])
    module = "-m tfaccel.planner.trial" if candidate.hosts == 1 else "-m -- tfaccel.planner.trial"
    more = [f"--accumulate={candidate.accumulate}"] if candidate.accumulate > 1 else []
    words = [*launcher.split(), *module.split(), target, f"--batch={batch}", *options, *more]
    return shlex.join(words)


def _flags_of(path: str) -> set[str] | None:
    """The flags that a script defines; None for one that does not define tfaccel's."""
    if not path.endswith(".py"):
        return None
    text = Path(path).read_text("utf-8", errors="replace")
    if not re.search(r"\bflags\.define\(", text) or "tfaccel" not in text:
        return None
    return set(re.findall(r"DEFINE_\w+\(\s*[\"'](\w+)[\"']", text))
