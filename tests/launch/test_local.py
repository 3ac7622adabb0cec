"""Real workers, none of which imports TensorFlow."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tfaccel.errors import LaunchError
from tfaccel.launch.local import run

PREAMBLE = """
import json, os, signal, subprocess, sys, time
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
def ready():
    open(__file__ + ".ready", "w").close()
def await_ready():
    while not os.path.exists(__file__ + ".ready"):
        time.sleep(0.01)
def asleep():
    print("pid", os.getpid())
    ready()
    time.sleep(60)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `tfaccel launch` with a script of these lines; nothing outlives the test.

    What all workers say is shown, unless the options say otherwise.
    """
    started: list[subprocess.Popen[str]] = []

    def begin(script: str, *options: str, nproc: int | str = 2) -> subprocess.Popen[str]:
        path = tmp_path / "train.py"
        path.write_text(PREAMBLE + script)
        command = [sys.executable, "-m", "tfaccel.cli", "launch", f"--nproc={nproc}", "--show=all"]
        process = subprocess.Popen(
            [*command, *options, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            # Also where the tests themselves run under nohup.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def pids_of(process: subprocess.Popen[str], count: int) -> list[int]:
    """Reads the launcher's output until so many processes have said that they are there."""
    assert process.stdout is not None
    pids: list[int] = []
    while len(pids) < count:
        line = process.stdout.readline()
        assert line, "the launcher ended early"
        pids += map(int, re.findall(r"pid (\d+)", line))
    return pids


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return not sys.platform.startswith("linux")
    return state not in "ZX"


def assert_gone(pids: list[int], within_s: float = 0.0) -> None:
    deadline = time.monotonic() + within_s
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def test_every_line_carries_its_rank(start: Start) -> None:
    process = start("print('one'); print('two', file=sys.stderr); print('three', end='')", nproc=3)
    code, out, err = finish(process)
    assert code == 0
    assert sorted(out.splitlines()) == sorted(
        f"[{rank}] {word}" for rank in range(3) for word in ("one", "three")
    )
    assert sorted(err.splitlines()) == [f"[{rank}] two" for rank in range(3)]


QUIET = """
print(f"all that rank {rank} does")
if rank:
    await_ready()
print("WARNING: everybody", file=sys.stderr)
print("W0000 00:00:1795939443.3 8450 gpu.cc:2431] only some" if rank else "", file=sys.stderr)
print("I0000 00:00:1795939443.3 8450 port.cc:153] oneDNN custom operations", file=sys.stderr)
for step in range(100):
    print("\\b" * 20 + f"\\r{step + 1}/100 loss", end="", flush=True)
print(flush=True)
ready()
"""


def test_the_chief_is_shown_alone_and_the_logs_hold_everything(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    logs = tmp_path / "logs"
    process = start(QUIET, "--show=chief", f"--log-dir={logs}", nproc=3)
    code, out, err = finish(process)
    assert (code, out) == (0, "all that rank 0 does\n100/100 loss\n")
    assert err.splitlines() == [
        *("WARNING: everybody", ""),
        "[1,2] W0000 00:00:1795939443.3 8450 gpu.cc:2431] only some",
    ]
    for rank in range(3):
        lines = (logs / f"rank-{rank}.log").read_text().splitlines()
        assert len(lines) == 5
        assert {f"all that rank {rank} does", "100/100 loss", "WARNING: everybody"} < set(lines)


def test_who_sets_tensorflows_log_level_gets_what_it_says(start: Start) -> None:
    process = start(QUIET, "--show=chief", "--env=TF_CPP_MIN_LOG_LEVEL=0")
    assert "oneDNN custom operations" in finish(process)[2]


def test_a_worker_that_is_not_shown_is_shown_when_it_fails(start: Start) -> None:
    script = "print('out of', rank)\nif rank == 1: raise ValueError('the cause')\nasleep()"
    code, _, err = finish(start(script, "--show=chief"))
    assert code == 1
    tail = err[err.index("tfaccel launch:") :].splitlines()
    assert tail[1:5] == [
        "the others: rank 0 was stopped",
        *("the end of its stdout:", "  out of 1", "the end of its stderr:"),
    ]
    assert tail[-1] == "  ValueError: the cause"
    assert err.count("the cause") == 2, "the line of the script, and the exception"


def test_workers_share_a_job_and_have_ports_of_their_own(start: Start) -> None:
    script = "job = os.environ['TFACCEL_JOB_ID'] + os.environ['TFACCEL_JOB_SECRET']\n"
    script += "print(job, os.environ['TF_CONFIG'], os.environ['COLOUR'])"
    jobs, addresses = set(), set()
    for _ in range(2):
        code, out, _ = finish(start(script, "--env", "COLOUR=a=b"))
        assert code == 0
        lines = [line.split(maxsplit=2) for line in out.splitlines()]
        assert all(line[2].endswith(" a=b") for line in lines)
        assert len({line[1] for line in lines}) == 1
        jobs.add(lines[0][1])
        addresses.update(re.findall(r"127\.0\.0\.1:\d+", out))
    assert len(jobs) == 2
    assert len(addresses) == 4


def test_the_first_failure_stops_all_and_its_traceback_comes_last(start: Start) -> None:
    process = start("if rank == 1: raise ValueError('the cause')\nasleep()", nproc=3)
    code, out, err = finish(process)
    assert code == 1
    tail = err[err.index("tfaccel launch:") :].splitlines()
    assert re.fullmatch(r"tfaccel launch: rank 1 failed first: exit code 1 \(pid \d+\)", tail[0])
    assert tail[1] == "the others: rank 0 was stopped, rank 2 was stopped"
    assert tail[3] == "  Traceback (most recent call last):"
    assert tail[-1] == "  ValueError: the cause"
    assert_gone([int(pid) for pid in re.findall(r"pid (\d+)", out)])


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        ("sys.exit(7)", 7, "rank 1 failed first: exit code 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "rank 1 failed first: killed by SIGKILL"),
        ("os.abort()", 134, "rank 1 failed first: killed by SIGABRT"),
    ],
)
def test_the_exit_code_is_the_failed_ranks(start: Start, end: str, code: int, says: str) -> None:
    found, _, err = finish(start(f"if rank == 1: {end}\nasleep()"))
    assert found == code
    assert says in err


def test_the_one_that_lost_its_peer_is_not_the_cause(start: Start) -> None:
    script = """
if rank == 0:
    await_ready()
    raise RuntimeError("UnavailableError: Connection reset by peer")
ready()
time.sleep(0.3)
raise ValueError("the cause")
"""
    code, _, err = finish(start(script))
    assert code == 1
    assert "rank 1 failed first" in err
    assert "the others: rank 0 exit code 1" in err.splitlines()
    assert err.splitlines()[-1] == "  ValueError: the cause"


def test_a_rank_that_ends_well_early_is_no_failure(start: Start) -> None:
    code, out, err = finish(start("if rank == 1:\n    time.sleep(0.3)\n    print('done')"))
    assert (code, out, err) == (0, "[1] done\n", "")


def test_a_worker_that_never_comes_is_named(start: Start) -> None:
    script = """
from tfaccel.cluster import rendezvous, resolve
if rank == 1: asleep()
rendezvous(resolve(), timeout_s=float(os.environ["TFACCEL_START_TIMEOUT"]),
     job_id=os.environ["TFACCEL_JOB_ID"])
"""
    code, _, err = finish(start(script, "--start-timeout", "0.5"))
    assert code == 1
    assert re.search(
        r"1 of 2 workers did not connect within 0.5 s: worker 1 \(127.0.0.1:\d+\)", err
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_reach_all_workers(start: Start, number: signal.Signals, code: int) -> None:
    script = f"""
def told(number, frame):
    print("told", number)
    sys.exit(0)
signal.signal({int(number)}, told)
asleep()
"""
    process = start(script)
    pids = pids_of(process, 2)
    process.send_signal(number)
    found, out, err = finish(process)
    assert found == code
    assert sorted(out.split("\n"))[1:] == [f"[{rank}] told {int(number)}" for rank in range(2)]
    assert err == f"tfaccel launch: stopped all 2 workers after {number.name}\n"
    assert_gone(pids)


DEAF = """
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
"""


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(start: Start) -> None:
    script = """
if rank == 1:
    await_ready()
    sys.exit(3)
asleep()
"""
    process = start(DEAF + script, "--grace=0.3")
    pids = pids_of(process, 1)
    code, _, err = finish(process)
    assert (code, "rank 0 was stopped" in err) == (3, True)
    assert_gone(pids)


def test_a_second_ctrl_c_ends_the_grace(start: Start) -> None:
    script = "signal.signal(signal.SIGINT, lambda *_: print('told, pid', os.getpid()))\nasleep()"
    process = start(script, "--grace=600")
    pids = pids_of(process, 2)
    process.send_signal(signal.SIGINT)
    assert sorted(pids_of(process, 2)) == sorted(pids)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert_gone(pids)


@pytest.mark.parametrize("code", [0, 4])
def test_grandchildren_end_with_the_job(start: Start, code: int) -> None:
    # One obeys SIGTERM, one does not; their ranks end well, or fail, or are stopped.
    script = f"""
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", deaf] if rank else ["sleep", "60"])
print("pid", child.pid)
if rank == 0:
    await_ready()
    sys.exit({code})
ready()
time.sleep(0.3)
"""
    process = start(script, "--grace=0.3")
    pids = pids_of(process, 2)
    assert finish(process)[0] == code
    assert_gone(pids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_workers_die_with_a_launcher_that_was_killed(start: Start) -> None:
    process = start(DEAF + "asleep()")
    pids = pids_of(process, 2)
    process.kill()
    assert_gone(pids, within_s=10.0)


def test_log_dir_holds_one_file_a_rank(start: Start, tmp_path: Path) -> None:
    logs = tmp_path / "deep" / "logs"
    script = "print(f'out {rank}'); sys.stdout.write('1/2\\r2/2\\n'); print('err', file=sys.stderr)"
    assert finish(start(script, "--log-dir", str(logs)))[0] == 0
    assert sorted(path.name for path in logs.iterdir()) == ["rank-0.log", "rank-1.log"]
    for rank in range(2):
        lines = (logs / f"rank-{rank}.log").read_text().splitlines()
        assert sorted(lines) == ["2/2", "err", f"out {rank}"]


def test_much_output_does_not_block_a_worker(start: Start) -> None:
    code, out, _ = finish(start("for i in range(20_000): print(i, 'x' * 40)"))
    assert code == 0
    assert len(out.splitlines()) == 40_000


@pytest.mark.parametrize(
    ("command", "nproc", "says"),
    [
        (["./no-such-program"], 2, "cannot start './no-such-program'"),
        ([sys.executable], 0, "--nproc is 0; expected at least 1"),
        ([], 1, "there is no command"),
    ],
)
def test_a_program_that_cannot_be_started_is_an_error(
    command: list[str], nproc: int, says: str
) -> None:
    with pytest.raises(LaunchError, match=re.escape(says)):
        run(command, nproc=nproc)


def test_logs_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="cannot write logs to"):
        run([sys.executable, "-c", ""], nproc=1, log_dir=tmp_path / "file")


def test_run_leaves_the_signal_handlers_as_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run([sys.executable, "-c", ""], nproc=1) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


ENDS = """
if rank == 1:
    sys.exit()
tries = __file__ + ".tries"
number = os.path.getsize(tries) if os.path.exists(tries) else 0
open(tries, "a").write("x")
print("try", number)
sys.exit(CODES[number])
"""


@pytest.mark.parametrize(
    ("codes", "code", "tries"),
    [
        ("[33, 33, 0]", 0, 3),  # not counted
        ("[7, 33, 7, 0]", 7, 3),  # one may fail, and the second failure is the last
        ("[93, 0]", 93, 1),  # of no use
    ],
)
def test_codes_say_whether_to_start_again(
    start: Start, tmp_path: Path, codes: str, code: int, tries: int
) -> None:
    process = start(ENDS.replace("CODES", codes), "--max-restarts=1")
    found, out, err = finish(process)
    assert found == code, err
    assert [line for line in out.splitlines() if line.startswith("[0]")] == [
        f"[0] try {number}" for number in range(tries)
    ]
    assert err.count("one was preempted and saved a checkpoint") == codes.count("33")


def test_a_launcher_that_gets_sigterm_exits_with_the_code_of_its_workers(start: Start) -> None:
    script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(33))\nasleep()"
    process = start(script)
    pids = pids_of(process, 2)
    process.send_signal(signal.SIGTERM)
    code, _, _ = finish(process)
    assert code == 33, "for the engine above: an inner launcher may be one of its workers"
    assert_gone(pids)


MEETS = """
from tfaccel.cluster import rendezvous, resolve
size = len(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"])
def meet():
    rendezvous(resolve(), timeout_s=float(os.environ["TFACCEL_START_TIMEOUT"]),
         job_id=os.environ["TFACCEL_JOB_ID"], arrivals=os.environ["TFACCEL_ARRIVALS"])
"""


@pytest.mark.parametrize("end", ["sys.exit(9)", "asleep()"])
def test_a_range_begins_without_who_does_not_come_and_tries_it_again(
    start: Start, end: str
) -> None:
    script = f"""
tried = __file__ + ".tried"
if rank == 2 and not os.path.exists(tried):
    open(tried, "w").close()
    {end}
meet()
print("of", size)
if size == 2:
    sys.exit(7) if rank == 0 else asleep()
"""
    options = ("--start-timeout=4", "--max-restarts=1")
    code, out, err = finish(start(MEETS + script, *options, nproc="2:3"))
    assert code == 0, err
    assert sorted(re.findall(r"\[(\d)\] of 3", out)) == ["0", "1", "2"]
    assert "[0] of 2" in out
    said = [line for line in err.splitlines() if re.match("tfaccel launch: (re)?starting", line)]
    assert said == [
        "tfaccel launch: starting 2 workers: rank 2 did not connect to the others",
        "tfaccel launch: restarting all 3 workers (restart 1 of 1)",
    ]


def test_a_range_ends_at_its_fewest(start: Start) -> None:
    script = "print('of', size)\nif rank == 1: sys.exit(9)\nawait_ready()"
    code, out, err = finish(start(MEETS + script, nproc="2:3"))
    assert code == 9
    assert set(re.findall(r"\[1\] of \d", out)) == {"[1] of 3", "[1] of 2"}
    assert err.count("did not connect to the others") == 1
