"""A Slurm that runs on this machine puts its tasks where we say they are."""

from __future__ import annotations

import sys

import pytest

from tests.cluster.real_slurm import real_slurm, why_not
from tests.cluster.slurm_steps import tasks_of
from tests.support import ROOT
from tfaccel.cluster import resolve, slurm
from tfaccel.errors import ClusterError

NODES = tuple(f"127.0.0.{i}" for i in (1, 2, 3))  # names at which workers reach each other
STEPS = (
    "srun -N3 -n7 -m cyclic PROGRAM",
    "salloc -N3 -n8 -m plane=2 srun PROGRAM",
    "srun --ntasks-per-node=2 -w 127.0.0.3,127.0.0.1 PROGRAM",
)
MEET = """
from tfaccel.cluster import rendezvous, resolve
me = resolve()
print(me.rank, me.address, rendezvous(me, timeout_s=30, payload=me.address.encode()))
"""


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_every_rank_is_where_a_real_slurm_put_it() -> None:
    with real_slurm(NODES, cpus=64) as running:
        for step in STEPS:
            tasks = tasks_of(running, step)
            nodes = [task["SLURMD_NODENAME"] for task in tasks]
            assert len(set(nodes)) > 1, step
            for rank, task in enumerate(tasks):
                found = resolve(task)
                assert found is not None, step
                assert (found.rank, found.source) == (rank, slurm.SOURCE), step
                assert [address.partition(":")[0] for address in found.workers] == nodes, step
        step = "srun -n3 -m arbitrary -w 127.0.0.2,127.0.0.1,127.0.0.2 PROGRAM"
        task, *_ = tasks_of(running, step)
        with pytest.raises(ClusterError, match="SLURM_DISTRIBUTION is 'arbitrary'"):
            resolve(task)
        python = [sys.executable, "-c", MEET]
        met = running.run("srun", "-N3", "-n4", *python, env={"PYTHONPATH": str(ROOT)})
        assert met.returncode == 0, met.stderr
        told = sorted(line.split() for line in met.stdout.splitlines())
        addresses = [address for _, address, _ in told]
        assert [rank for rank, _, _ in told] == ["0", "1", "2", "3"]
        assert {address.partition(":")[0] for address in addresses} == set(NODES)
        assert {payload for *_, payload in told} == {f"b'{addresses[0]}'"}
