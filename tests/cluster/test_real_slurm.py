"""A Slurm that runs on this machine puts its tasks where we say they are."""

from __future__ import annotations

import pytest

from tests.cluster.real_slurm import real_slurm, why_not
from tests.cluster.slurm_steps import NODES, tasks_of
from tfaccel.cluster import resolve, slurm
from tfaccel.errors import ClusterError

STEPS = (
    "srun -N3 -n7 -m cyclic PROGRAM",
    "salloc -N3 -n8 -m plane=2 srun PROGRAM",
    "srun --ntasks-per-node=2 -w n3,n1 PROGRAM",
)


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
        with pytest.raises(ClusterError, match="SLURM_DISTRIBUTION is 'arbitrary'"):
            resolve(tasks_of(running, "srun -n3 -m arbitrary -w n2,n1,n2 PROGRAM")[0])
