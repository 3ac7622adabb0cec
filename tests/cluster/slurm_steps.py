"""What a real Slurm tells the tasks of many kinds of steps.

python -m tests.cluster.slurm_steps      (as root; writes slurm_steps.json)
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.cluster.real_slurm import Slurm, real_slurm
from tfaccel.cluster import mpiexec, slurm

RECORDED = Path(__file__).with_suffix(".json")
NODES = ("n1", "n2", "n3")

# PROGRAM is what a task runs. `arbitrary` takes the node of each task from SLURM_HOSTFILE or -w.
STEPS = (
    "srun -N3 -n7 PROGRAM",
    "srun -N3 -n7 -m block PROGRAM",
    "srun -N3 -n7 -m block,NoPack PROGRAM",
    "srun -N3 -n7 -m nopack PROGRAM",
    "srun -N3 -n7 -m *:*,Pack PROGRAM",
    "srun -N3 -n7 -m block:cyclic PROGRAM",
    "srun -N3 -n7 -m cyclic PROGRAM",
    "srun -N3 -n7 -m cyclic:block PROGRAM",
    "srun -N3 -n7 -m cyclic:fcyclic:block,NoPack PROGRAM",
    "srun -N3 -n7 -m plane=2 PROGRAM",
    "srun -N3 -n11 -m plane=2 PROGRAM",
    "srun -N3 -n13 -m plane=3 PROGRAM",
    "srun -N3 -n22 -m plane=3 PROGRAM",
    "srun -N3 -n5 -c2 -m cyclic PROGRAM",
    "srun -N3 --ntasks-per-node=2 PROGRAM",
    "srun -N3 --ntasks-per-node=2 -m cyclic PROGRAM",
    "srun -n5 -w n3,n1 -m cyclic PROGRAM",
    "srun -N2 -n5 -x n2 -m plane=2 PROGRAM",
    "srun -n3 -m pack PROGRAM",
    "srun -n1 PROGRAM",
    "salloc -N3 -n8 -m cyclic srun PROGRAM",
    "salloc -N3 -n8 -m plane=2 srun PROGRAM",
    "salloc -N3 -n8 -m plane=2 srun -m block PROGRAM",
    "salloc -N3 -n8 -m plane=2 srun -N2 -n4 -m cyclic PROGRAM",
    "salloc -N3 -n8 srun --ntasks-per-node=3 -m cyclic PROGRAM",
    "salloc -N3 -n8 --ntasks-per-node=3 srun -m plane=2 PROGRAM",
    "srun -n5 -m arbitrary -w n2,n1,n2,n3,n1 PROGRAM",
    "srun -n2 -m arbitrary -w n2,n1 PROGRAM",
    "srun -n3 -m arbitrary -w n2,n2,n2 PROGRAM",
    "srun -N2 -n4 -m cyclic PROGRAM : -N1 -n3 PROGRAM",
    "srun -N2 -n2 -w n1,n3 PROGRAM : -N1 -n1 -w n2 PROGRAM",
    "salloc -N2 -n4 : -N1 -n2 srun -m cyclic PROGRAM",
    "srun --mpi=pmi2 -N3 -n5 -m cyclic PROGRAM",
    "salloc -N2 -n4 mpiexec -n 4 PROGRAM",
    "salloc -N2 -n2 mpiexec -n 2 -ppn 1 PROGRAM",
    "salloc -N2 -n4 PROGRAM",
)

_KEPT = {*slurm.VARIABLES, *mpiexec.VARIABLES, "SLURM_NODELIST"}
_SCRIPT = """#!/bin/sh
env > {tasks}/$$
"""


def tasks_of(running: Slurm, step: str) -> list[dict[str, str]]:
    """Runs a step, and returns what each of its tasks was told, in the order of their ranks."""
    program, tasks = running.folder / "program", running.folder / "tasks"
    tasks.mkdir(exist_ok=True)
    program.write_text(_SCRIPT.format(tasks=tasks))
    program.chmod(0o755)
    done = running.run(*(str(program) if word == "PROGRAM" else word for word in step.split()))
    assert done.returncode == 0, f"{step}: {done.stderr}"
    environments = []
    for file in tasks.iterdir():
        lines = (line.partition("=") for line in file.read_text().splitlines())
        environments.append({name: value for name, _, value in lines if name in _KEPT})
        file.unlink()
    order = ("PMI_RANK", "SLURM_PROCID")
    return sorted(
        environments, key=lambda task: int(next((task[k] for k in order if k in task), 0))
    )


def recorded() -> list[tuple[str, list[dict[str, str]]]]:
    """The steps that were recorded, with what each of their tasks was told."""
    steps = json.loads(RECORDED.read_text())["steps"]
    return [(step["command"], [step["all"] | task for task in step["each"]]) for step in steps]


def _compact(step: str, tasks: list[dict[str, str]]) -> dict[str, Any]:
    """What all tasks were told, once, and what each was told besides."""
    same = dict(set(tasks[0].items()).intersection(*(task.items() for task in tasks)))
    each = [{k: v for k, v in sorted(task.items()) if k not in same} for task in tasks]
    return {"command": step, "all": dict(sorted(same.items())), "each": each}


def main() -> None:
    """Records every step."""
    if shutil.which("mpiexec") is None:
        sys.exit("mpiexec not found: put the folder of MPICH's launcher into PATH")
    with real_slurm(NODES, cpus=16) as running:
        steps = [_compact(step, tasks_of(running, step)) for step in STEPS]
        text = ",\n".join(json.dumps(step) for step in steps)
        RECORDED.write_text(f'{{"slurm": "{running.version}", "steps": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
