"""What a process tells of itself."""

from __future__ import annotations

import time

from tfaccel.distribute.worker_activity import WorkerActivity

LASTS_S = 0.3


def use_a_processor() -> None:
    until = time.monotonic() + LASTS_S
    while time.monotonic() < until:
        pass


def test_who_uses_a_processor_is_told_from_who_waits_for_others() -> None:
    activity = WorkerActivity()
    activity.report()
    use_a_processor()
    assert activity.report()["unused_s"] == 0.0
    time.sleep(LASTS_S)
    assert activity.report()["unused_s"] >= 0.9 * LASTS_S


def test_what_mpi_uses_while_it_waits_does_not_count() -> None:
    activity = WorkerActivity()
    activity.report()
    seen = []

    @activity.in_mpi
    def collective() -> None:
        use_a_processor()
        seen.append(activity.report()["unused_s"])

    collective()
    assert seen[0] >= 0.9 * LASTS_S
    use_a_processor()
    assert activity.report()["unused_s"] == 0.0
