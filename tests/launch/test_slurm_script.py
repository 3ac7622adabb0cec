"""The sbatch script, and what it does with a `srun` that only says how a step ended."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tfaccel.errors import LaunchError
from tfaccel.exit_codes import NO_PROGRESS, PREEMPTED
from tfaccel.launch import slurm
from tfaccel.launch.options import values_of
from tfaccel.launch.spec import Job

NASTY = ["a b", "it's", '"$HOME"', "`id`", "$(id)", "a\nb", "*", "%j", "!x", ";", "", "ü"]

SRUN = r"""#!/bin/bash
# Ends as the next line of the file `steps` says, and keeps its words.
echo "$*" >> words
env | grep -E '^(TFACCEL_|A=)' >> variables
line=$(sed -n 1p steps); sed -i 1d steps
echo "0: output"
echo "1: srun: error: n1: task 7: Exited with exit code 77" >&2
IFS='|' read -r code said <<< "$line"
[[ $said ]] && printf 'srun: error: %s\n' "$said" >&2
printf 'srun: error: n2: task 1: Terminated\n' >&2
exit "$code"
"""
SCONTROL = '#!/bin/bash\necho "$*" >> requeued\n'


def options(**values: object) -> dict[str, object]:
    return dict(values_of("slurm", slurm.OPTIONS, values, {}))


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


def checked(script: str) -> str:
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return script


def test_what_is_requested() -> None:
    job = Job(("train.py",), name="mine", workers=4)
    script = checked(
        slurm.sbatch_script(
            job,
            options(nodes=2, cpus="8", gpus=1, time="1-02:00:00", partition="gpu", account="a",
                    sbatch=["--mem=64G", "--constraint=[a*2]"]),
        )
    )  # fmt: skip
    assert directives(script) == [
        *("--job-name=mine", "--nodes=2", "--ntasks=4", "--cpus-per-task=8", "--gpus-per-task=1"),
        *("--time=1-02:00:00", "--signal=TERM@120", "--partition=gpu", "--account=a"),
        *("--requeue", "--open-mode=append", "--mem=64G", "--constraint=[a*2]"),
    ]
    given = "--ntasks=4 --nodes=2 --cpus-per-task=8 --gpus-per-task=1 --kill-on-bad-exit=1 --label"
    assert f"srun {given} {sys.executable} train.py 2>&1" in script
    few = checked(slurm.sbatch_script(Job(("train.py",), workers=3), options()))
    assert directives(few) == [
        *("--job-name=train", "--nodes=3", "--ntasks=3", "--signal=TERM@120"),
        *("--requeue", "--open-mode=append"),
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"partition": "a b"},
        {"partition": "a\n#SBATCH --uid=0"},
        {"account": "a#b"},
        {"account": 'a"b'},
        {"time": "1 day"},
        {"sbatch": ["-N 3"]},
        {"sbatch": ["--comment=a b"]},
        {"cpus": "4.5"},
    ],
)
def test_what_a_directive_cannot_hold_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(LaunchError, match="expected"):
        slurm.sbatch_script(Job(("train.py",)), options(**values))


class Fake:
    """A folder with a `srun` whose steps end as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def run(self, script: str, *steps: str, requeues: int = 0) -> subprocess.CompletedProcess[str]:
        (self.folder / "steps").write_text("".join(f"{step}\n" for step in steps))
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash"],
            input=script,
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": path,
                "SLURM_JOB_ID": "12",
                "SLURM_RESTART_COUNT": str(requeues),
            },
            capture_output=True,
            text=True,
            timeout=30,
        )

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def script(**fields: object) -> str:
    return slurm.sbatch_script(Job(("train.py",), workers=2, **fields), options())  # type: ignore[arg-type]


def test_a_job_that_succeeds(fake: Fake) -> None:
    done = fake.run(script(), "0|")
    assert done.returncode == 0
    assert done.stdout == "0: output\n"
    assert "srun: error: n2: task 1: Terminated\n" in done.stderr, "what srun says is passed on"
    assert len(fake.lines("words")) == 1
    assert "TFACCEL_JOB_ID=12.0.0" in fake.lines("variables")


def test_failures_are_counted_and_the_first_one_is_the_code(fake: Fake) -> None:
    failed = "143|n2: tasks 1,3: Exited with exit code 7"
    done = fake.run(script(max_restarts=2), *[failed] * 9)
    assert done.returncode == 7
    assert len(fake.lines("words")) == 3
    assert "exit code 7; restarting all workers (restart 2 of 2)" in done.stderr
    assert fake.lines("requeued") == []
    variables = fake.lines("variables")
    assert "TFACCEL_JOB_ID=12.0.2" in variables, "each try is a job of its own"
    secrets = {line for line in variables if line.startswith("TFACCEL_JOB_SECRET=")}
    assert len(secrets) == 3
    assert all(re.fullmatch(r"TFACCEL_JOB_SECRET=[0-9a-f]{32}", line) for line in secrets)


def test_a_killed_worker_has_no_code_of_its_own(fake: Fake) -> None:
    # Its peer was told to stop and has saved: that is no preemption.
    done = fake.run(script(), "137|n1: task 0: Killed")
    assert done.returncode == 137
    assert fake.lines("requeued") == []


def test_a_preempted_job_is_requeued(fake: Fake) -> None:
    done = fake.run(script(), f"143|n1: task 0: Exited with exit code {PREEMPTED}")
    assert done.returncode == PREEMPTED
    assert fake.lines("requeued") == ["requeue 12"]


@pytest.mark.parametrize("said", ["task 0: Terminated", "task 1: Exited with exit code 143"])
def test_a_job_that_is_told_to_stop_as_it_starts_is_requeued(fake: Fake, said: str) -> None:
    done = fake.run(script(), f"143|n1: {said}", requeues=2)
    assert done.returncode == 143
    assert fake.lines("requeued") == ["requeue 12"]
    assert "told to stop before they could save; requeued" in done.stderr


def test_a_job_that_is_told_to_stop_at_every_start_is_not_requeued_for_ever(fake: Fake) -> None:
    done = fake.run(script(), "143|n1: task 0: Terminated", requeues=3)
    assert done.returncode == 143
    assert fake.lines("requeued") == []


def test_a_script_that_does_not_save_is_not_requeued_at_its_limit(fake: Fake) -> None:
    later = SRUN.replace('exit "$code"', 'sleep 2; exit "$code"')
    (fake.folder / "srun").write_text(later)
    done = fake.run(script().replace("SECONDS < 120", "SECONDS < 1"), "143|n1: task 0: Terminated")
    assert done.returncode == 143
    assert fake.lines("requeued") == []


def test_without_progress_nothing_is_started_again(fake: Fake) -> None:
    done = fake.run(script(max_restarts=5), f"93|n1: task 0: Exited with exit code {NO_PROGRESS}")
    assert done.returncode == NO_PROGRESS
    assert len(fake.lines("words")) == 1


def test_a_job_that_slurm_ends_is_not_requeued_by_us(fake: Fake) -> None:
    """`scancel` tells the script too: it would come back from the dead."""
    told = SRUN.replace('exit "$code"', 'kill -TERM $PPID; exit "$code"')
    (fake.folder / "srun").write_text(told)
    said = f"143|n1: task 0: Exited with exit code {PREEMPTED}"
    done = fake.run(script(max_restarts=3), said)
    assert done.returncode == PREEMPTED
    assert fake.lines("requeued") == []
    assert len(fake.lines("words")) == 1


def test_words_and_variables_arrive_as_they_were_given(fake: Fake) -> None:
    named = tuple((f"A{i}", value) for i, value in enumerate(NASTY))
    show = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('got', 'w'))"
    (fake.folder / "show.py").write_text(show)
    skip_options = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
    (fake.folder / "srun").write_text(skip_options)
    done = fake.run(checked(slurm.sbatch_script(Job(("show.py", *NASTY), env=named), options())))
    assert done.returncode == 0, done.stderr
    words, variables = json.loads((fake.folder / "got").read_text())
    assert words == NASTY
    assert dict(named).items() <= variables.items()


def test_in_an_allocation_there_is_only_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    job = Job(("train.py",), workers=2, max_restarts=1)
    script = checked(slurm.render(job, options()))
    assert "#SBATCH" not in script
    assert "requeue" not in script, "the allocation may be a terminal's"
    assert shlex.join(["srun", "--ntasks=2"]) in script
    with pytest.raises(
        LaunchError, match="--partition is for sbatch, and this process is in an al"
    ):
        slurm.render(job, options(partition="p"))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(LaunchError, match="this is one of 2 tasks of srun"):
        slurm.render(job, options())


def test_a_missing_sbatch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LaunchError, match="sbatch is not installed; expected a machine of a Slurm"):
        slurm.launch(Job(("train.py",)), options())


def test_of_a_range_slurm_chooses_how_many_nodes_there_are() -> None:
    job = Job(("train.py",), workers=4, min_workers=2)
    script = checked(slurm.sbatch_script(job, options(cpus="8", gpus=1)))
    resources = ["--cpus-per-task=8", "--gpus-per-node=1"]
    assert directives(script)[1:4] == ["--nodes=2-4", *resources]
    assert f"srun --ntasks-per-node=1 {' '.join(resources)} --kill-on-bad-exit=1" in script
    with pytest.raises(LaunchError, match="--nodes is 2, and --nproc 2:4 runs one worker on each"):
        slurm.sbatch_script(job, options(nodes=2))


def test_an_allocation_has_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(LaunchError, match="--nproc is 2:4, and this process is in an allocation"):
        slurm.render(Job(("train.py",), workers=4, min_workers=2), options())
