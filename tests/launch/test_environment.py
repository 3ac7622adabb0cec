from __future__ import annotations

import socket

import pytest

from tfaccel.cluster import resolve
from tfaccel.launch.environment import worker_environment
from tfaccel.launch.ports import free_ports

WORKERS = ("127.0.0.1:2222", "127.0.0.1:2223", "127.0.0.1:2224")


def made(base: dict[str, str], **overrides: object) -> dict[str, str]:
    options: dict[str, object] = {"workers": WORKERS, "rank": 2, "cores": 8, **overrides}
    return worker_environment(base, job_id="7f", secret="5e", start_timeout_s=1.5, **options)  # type: ignore[arg-type]


def test_each_worker_gets_its_rank() -> None:
    environment = made({"HOME": "/root", "TF_CONFIG": "{}"})
    cluster = resolve(environment)
    assert cluster is not None
    assert (cluster.workers, cluster.rank) == (WORKERS, 2)
    assert environment["TFACCEL_JOB_ID"] == "7f"
    assert environment["TFACCEL_JOB_SECRET"] == "5e"
    assert environment["TFACCEL_START_TIMEOUT"] == "1.5"
    assert environment["PYTHONUNBUFFERED"] == "1"
    assert environment["HOME"] == "/root"


@pytest.mark.parametrize(
    ("base", "overrides", "threads"),
    [
        ({}, {}, ("2", "2")),
        ({}, {"cores": 2}, ("1", "1")),
        ({"OMP_NUM_THREADS": "5"}, {}, ("5", "2")),
        ({}, {"workers": WORKERS[:1], "rank": 0}, (None, None)),
        ({}, {"cores": None}, (None, None)),
    ],
)
def test_workers_share_the_cores_by_default(
    base: dict[str, str], overrides: dict[str, object], threads: tuple[str | None, str | None]
) -> None:
    environment = made(base, **overrides)
    found = (environment.get("OMP_NUM_THREADS"), environment.get("TF_NUM_INTRAOP_THREADS"))
    assert found == threads


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(16)
    assert len(set(ports)) == 16
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("", port))


def test_free_ports_skip_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr("tfaccel.launch.ports._ephemeral_start", lambda: 60_000)
        monkeypatch.setattr("random.SystemRandom.sample", lambda *_: [taken])
        assert taken not in free_ports(1)


def test_a_launcher_inside_another_has_arrivals_of_its_own() -> None:
    assert made({}, arrivals="/tmp/a")["TFACCEL_ARRIVALS"] == "/tmp/a"
    assert "TFACCEL_ARRIVALS" not in made({"TFACCEL_ARRIVALS": "/tmp/a"})
