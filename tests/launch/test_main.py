"""The command line that all engines share; nothing here starts a worker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tfaccel import cli
from tfaccel.launch.engines import ENGINES
from tfaccel.launch.main import main
from tfaccel.launch.options import Option
from tfaccel.launch.spec import Job, check_name, default_name

NEEDED = {
    "local": ["--nproc=2"],
    "slurm": ["--nproc=2"],
    "ray": ["--nproc=2"],
    "kubernetes": ["--nproc=2", "--image=gcr.io/mine/train:1"],
    "skypilot": ["--nproc=2"],
    "tpu-vm": ["--zone=us-west4-a", "--accelerator-type=v5litepod-4"],
}


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    Path("train.py").touch()


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command is refused."""
    assert cli.main(["launch", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_takes_the_common_options(
    engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--dry-run", "--log-dir=/logs", "--env", "GREETING=it's $me", "--max-restarts=3"]
    for script in (["train.py", "--lr=1"], ["-m", "package.train", "--lr=1"]):
        assert main(["--engine", engine, *NEEDED[engine], *common, *script]) == 0
        out = capsys.readouterr().out
        for said in ("/logs", "GREETING", "--lr=1", script[-2]):
            assert said in out


def test_the_default_is_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nproc=2", "--dry-run", "--env=A=b c", "train.py"]) == 0
    secret, first, second, wait = capsys.readouterr().out.splitlines()
    assert secret.startswith("export TFACCEL_JOB_SECRET=$(")
    assert "TFACCEL_JOB_SECRET" not in first
    assert wait == "wait"
    assert re.search(
        r"'A=b c' .*TF_CONFIG=.*\"index\": 0.* TFACCEL_JOB_ID=\w+ .*train\.py &$", first
    )
    assert '"index": 1' in second


def test_the_lines_of_a_dry_run_are_a_shell_s(capsys: pytest.CaptureFixture[str]) -> None:
    show = "os.environb[b'A'] + b' ' + os.environb[b'TFACCEL_JOB_SECRET'] + bytes([10])"
    Path("train.py").write_text(f"import os; os.write(1, {show})")
    assert main(["--nproc=2", "--dry-run", "--env=A=b $c'", "train.py"]) == 0
    done = subprocess.run(
        ["bash", "-c", capsys.readouterr().out], capture_output=True, text=True, timeout=30
    )
    first, second = done.stdout.splitlines()
    assert first == second
    assert re.fullmatch(r"b \$c' [0-9a-f]{32}", first)


def test_a_dry_run_tells_restarts_logs_and_the_range(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nproc=2:3", "--max-restarts=3", "--log-dir=my logs", "--start-timeout=20"]
    assert main([*words, "--dry-run", "train.py"]) == 0
    restarts, logs, fewer, _, folder, *workers, _ = capsys.readouterr().out.splitlines()
    assert restarts == "# all workers are restarted up to 3 times after a failure"
    assert logs == "# the logs of restarts are in 'my logs/restart-N'"
    assert fewer.startswith("# started with as few as 2 workers where")
    assert fewer.endswith("connected within 20 s")
    assert folder == "mkdir -p 'my logs'"
    assert [line.rpartition("train.py")[2] for line in workers] == [
        *(" 2>&1 | tee 'my logs/rank-0.log' &", " > 'my logs/rank-1.log' 2>&1 &"),
        " > 'my logs/rank-2.log' 2>&1 &",
    ]


def test_the_lines_of_a_dry_run_write_the_logs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.py").write_text("import sys; print('out'); print('err', file=sys.stderr)")
    assert main(["--nproc=3", "--dry-run", "--log-dir=it's", "--show=2", "train.py"]) == 0
    done = subprocess.run(
        ["bash", "-c", capsys.readouterr().out], capture_output=True, text=True, timeout=30
    )
    assert sorted(done.stdout.split()) == ["err", "out"]
    assert not done.stderr
    logs = [Path("it's", f"rank-{rank}.log").read_text() for rank in range(3)]
    assert [sorted(log.split()) for log in logs] == [["err", "out"]] * 3


def test_a_dry_run_has_the_logs_of_data_workers(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nproc=1", "--data-workers=1", "--log-dir=logs", "--dry-run"]
    assert main([*words, "train.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("data-dispatcher", "data-worker-0"):
        assert sum(f" > logs/{name}.log 2>&1 & data=" in line for line in lines) == 1
    assert sum(" | tee logs/rank-0.log & workers=" in line for line in lines) == 1


def test_a_dry_run_has_the_data_workers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nproc=2", "--data-workers=2", "--dry-run", "train.py"]) == 0
    _, *data, first, second, wait = capsys.readouterr().out.splitlines()
    ports = [re.search(r"tfaccel\.launch\.data_worker (\d+) ?(\d*) & data=", line) for line in data]
    dispatcher = ports[0][1]  # type: ignore[index]
    assert [port[2] for port in ports] == ["", dispatcher, dispatcher]  # type: ignore[index]
    for line in (first, second):
        assert f"TFACCEL_DATA_SERVICE=127.0.0.1:{dispatcher} " in line
    assert wait == "wait $workers; kill $data"


@pytest.mark.parametrize(
    ("engine", "has"),
    [
        ("slurm", "-m tfaccel.launch.worker --show all --data-workers 3 -- "),
        ("skypilot", "-m tfaccel.launch.worker --data-workers 3 "),
        ("kubernetes", f'{" " * 14}- "--data-workers"\n{" " * 14}- "3"\n'),
        ("ray", "'data_workers': 3,"),
    ],
)
def test_other_engines_have_data_workers_beside_each_worker(
    engine: str, has: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = ["--image=i"] if engine == "kubernetes" else []
    words = [f"--engine={engine}", "--nproc=2", "--dry-run", *image]
    assert main([*words, "train.py"]) == 0
    assert not re.search("data.workers", capsys.readouterr().out)
    assert main([*words, "--data-workers=3", "train.py"]) == 0
    assert has in capsys.readouterr().out


def test_an_option_of_another_engine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--nproc=2", "--partition=p", "--image=i", "train.py") == (
        "tfaccel launch: error: --partition, --image is not an option of --engine local; expected "
        "those of every engine and its own: --grace, --show, --profile, --data-workers\n"
    )
    said = refusal(capsys, "--engine=slurm", "--nproc=2", "--grace=3", "train.py")
    assert "--grace is not an option of --engine slurm" in said
    assert "--nodes" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.py"], "--nproc is not given; expected the number of workers"),
        (["--nproc=0", "train.py"], "--nproc is 0; expected at least 1 worker"),
        (["--nproc=two", "train.py"], "--nproc is 'two'; expected a number, or two such as 2:4"),
        (["--nproc=:4", "train.py"], "--nproc is ':4'; expected a number, or two such as 2:4"),
        (["--nproc=0:4", "train.py"], "--nproc is 0:4; expected at least 1 worker"),
        (["--nproc=4:2", "train.py"], "--nproc is 4:2; expected the fewest workers first"),
        (
            ["--engine=kubernetes", "--image=i", "--nproc=2:4", "train.py"],
            "--nproc is 2:4, and a job of --engine kubernetes always has the same number of",
        ),
        (
            ["--engine=skypilot", "--nproc=2:4", "train.py"],
            "--nproc is 2:4, and a job of --engine skypilot always has the same number of",
        ),
        (
            ["--nproc=2", "--profile=2:1", "--log-dir=a", "train.py"],
            "--profile is '2:1'; expected a",
        ),
        (["--nproc=2", "--profile=1:2", "train.py"], "--profile is given, and --log-dir is not"),
        (["--nproc=2", "--show=some", "train.py"], "--show is 'some'; expected all, chief, or"),
        (["--nproc=2", "--show=0,2", "train.py"], "--show is 0,2, and the ranks of 2 workers are"),
        (
            ["--engine=tpu-vm", "--zone=z", "--accelerator-type=v6e-8", "--show=all", "train.py"],
            "--show is not an option of --engine tpu-vm",
        ),
        (
            [
                *("--engine=tpu-vm", "--zone=z", "--accelerator-type=v6e-8"),
                *("--data-workers=2", "train.py"),
            ],
            "--data-workers is not an option of --engine tpu-vm",
        ),
        (["--nproc=2", "--max-restarts=-1", "train.py"], "--max-restarts is -1; expected 0 or"),
        (["--engine=kubernetes", "--nproc=2", "a.py"], "--engine kubernetes needs --image IMAGE"),
        (["--engine=tpu-vm", "train.py"], "needs --zone Z, --accelerator-type TYPE"),
        (
            ["--engine=tpu-vm", "--nproc=2", "--zone=z", "--accelerator-type=v6e-8", "train.py"],
            "--nproc is 2, and --engine tpu-vm takes as many workers as its machines have",
        ),
        (
            ["--engine=tpu-vm", "--zone=z", "--accelerator-type=v6e-8", "--dry-run", "ls"],
            "the script is 'ls'; expected a .py file, or -m and a module",
        ),
        (["--engine=slurm", "--nproc=2", "--name=A_b", "train.py"], "--name is 'A_b'; expected up"),
        (
            ["--engine=slurm", "--nproc=2", "--env=A;rm -rf x=1", "--dry-run", "train.py"],
            "--env sets 'A;rm -rf x'; expected a name of letters, digits and underscores",
        ),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusal(capsys, *words)


def test_only_a_container_s_script_may_be_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for engine in ENGINES:
        words = ["--engine", engine, *NEEDED[engine], "--dry-run", "other.py"]
        if engine == "kubernetes":
            assert main(words) == 0
        else:
            with pytest.raises(SystemExit):
                main(words)
            assert "there is no file 'other.py'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "Train", "a_b", "-a", "a-", "1a", "a.b", "a" * 41, "a\nb"])
def test_names_are_dns_labels(name: str) -> None:
    with pytest.raises(Exception, match="expected up to 40 lower-case letters"):
        check_name(name)


@pytest.mark.parametrize(
    "script", ["train.py", "a/Über_42.py", "4.py", "_x_.py", "a" * 39 + "_b.py", "é.py"]
)
def test_default_names_are_names(script: str) -> None:
    assert check_name(default_name([script]))


def test_options_of_one_flag_are_the_same() -> None:
    """What they mean does not depend on the engine."""
    seen: dict[str, Option] = {}
    for engine in ENGINES.values():
        for option in engine.OPTIONS:
            assert seen.setdefault(option.dest, option) is option


def test_logs_come_from_the_worker_s_own_process() -> None:
    job = Job(("train.py", "--", "-x"), log_dir="my logs")
    before = ["py", "-m", "tfaccel.launch.worker", "--log-dir", "my logs", "--"]
    assert job.logged_command("py") == [*before, "py", "train.py", "--", "-x"]
    assert Job(("train.py",)).logged_command("py") == ["py", "train.py"]
    shown = Job(("train.py",), show="0,1").logged_command("py")
    assert shown == ["py", "-m", "tfaccel.launch.worker", "--show", "0,1", "--", "py", "train.py"]
