"""`tfaccel tpu run`, against a `gcloud` whose TPU is a folder of this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tfaccel
from tests.docs.fences import fences
from tfaccel.launch import gcloud
from tfaccel.launch.gcloud import TpuJob

ROOT = Path(__file__).parents[2]

GCLOUD = """#!{python}
import json, os, shutil, subprocess, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    print(json.dumps(words), file=log)
kind, what = words[2:4]
answers = json.loads(os.environ.get("ANSWERS", "{{}}"))
if what in answers:
    sys.stderr.write(answers[what][1])
    sys.exit(answers[what][0])
if what == "describe":
    asked = open({log!r}).read().count("describe")
    print("ACTIVE" if asked > 1 else "WAITING_FOR_RESOURCES")
if what == "scp":
    shutil.copy(words[4], os.path.join({home!r}, words[5].partition(":")[2]))
if what == "ssh":
    (command,) = [w.partition("=")[2] for w in words if w.startswith("--command=")]
    logs = [w.partition("=")[2] for w in words if w.startswith("--output-directory=")]
    out = open(os.path.join(logs[0], "0.log"), "w") if logs else None
    home = {{**os.environ, "HOME": {home!r}}}
    sys.exit(subprocess.call(["bash", "-c", command], env=home, stdout=out))
"""
# The TPU VM's Python, on which pip has nothing to do.
PYTHON = """#!/bin/bash
[ "$1 $2" = "-m pip" ] && exit 0
exec {python} "$@"
"""
SCRIPT = """
import os, sys, time
print("started with", sys.argv[1:], os.environ.get("GREETING"), flush=True)
time.sleep(float(os.environ.get("SLEEP", 0)))
sys.exit(int(os.environ.get("CODE", 0)))
"""


class Cloud:
    """A folder with a fake `gcloud` on the path, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "gcloud.jsonl"
        self._bin, self._home = folder / "bin", folder / "home of the vm"
        self.script = folder / "my code" / "train it.py"
        for made in (self._bin, self._home, self.script.parent / ".git"):
            made.mkdir(parents=True)
        self.script.write_text(SCRIPT)
        (self.script.parent / ".git" / "config").write_text("not to be copied")
        fake = GCLOUD.format(python=sys.executable, log=str(self.log), home=str(self._home))
        sleep = "#!/bin/bash\nexec /bin/sleep 0.1\n"
        for name, text in {
            "gcloud": fake,
            "python3": PYTHON.format(python=sys.executable),
            "sleep": sleep,
        }.items():
            (self._bin / name).write_text(text)
            (self._bin / name).chmod(0o755)

    def start(
        self, *words: str, path: str | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        path = f"{self._bin}:{os.environ['PATH']}" if path is None else path
        name = f"t{os.getpid()}-{abs(hash(self.log)) % 10**6}"
        command = [sys.executable, "-m", "tfaccel.cli", "tpu", "run", "--name", name]
        return subprocess.Popen(
            [*command, "--zone", "z-a", "--accelerator-type", "v5litepod-4", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # What a shell starts in the background would ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, *words: str, **given: Any) -> tuple[int, str, str]:
        process = self.start(*words, str(self.script), **given)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    @property
    def requests(self) -> list[str]:
        """The verbs of the commands, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line)[3] for line in lines]

    @property
    def home(self) -> Path:
        return next(self._home.iterdir())


@pytest.fixture
def cloud(tmp_path: Path) -> Any:
    yield Cloud(tmp_path)
    left = list(Path("/tmp").glob(f"t{os.getpid()}-*.tar.gz"))
    for archive in left:
        archive.unlink()
    assert left == [], "the packed code is left behind"


def test_a_script_runs_there_and_the_tpu_is_deleted(cloud: Cloud) -> None:
    words = ["--yes", "--env", "GREETING=it's me"]
    process = cloud.start(*words, str(cloud.script), "--", "--lr=1e-3", "two words", "a'b\"c$HOME")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert cloud.requests == ["create", "scp", "ssh", "ssh", "ssh", "delete"]
    said = ["--lr=1e-3", "two words", "a'b\"c$HOME"]
    assert f"started with {said} it's me" in out
    assert (cloud.home / cloud.script.name).exists()
    assert not (cloud.home / ".git").exists()


def test_a_queued_tpu_is_waited_for(cloud: Cloud) -> None:
    code, out, err = cloud.run("--yes", "--queued", "--spot")
    assert code == 0, out + err
    assert cloud.requests[:4] == ["create", "describe", "describe", "scp"]
    first = json.loads(cloud.log.read_text().splitlines()[0])
    assert first[2] == "queued-resources"
    assert "--spot" in first
    assert "--runtime-version=v2-alpha-tpuv5-lite" in first
    last = json.loads(cloud.log.read_text().splitlines()[-1])
    assert last[2:4] == ["queued-resources", "delete"]
    assert {"--force", "--quiet"} <= set(last)


def test_a_queue_that_does_not_answer_is_not_waited_for(cloud: Cloud) -> None:
    code, _, err = cloud.run("--yes", "--queued", ANSWERS=json.dumps({"describe": [4, "who?"]}))
    assert code == 4, err
    assert cloud.requests == ["create", "describe", "delete"]


def test_the_script_s_code_comes_back_and_the_tpu_is_deleted(cloud: Cloud) -> None:
    code, _, err = cloud.run("--yes", CODE="7")
    assert code == 7, err
    assert cloud.requests[-1] == "delete"


@pytest.mark.parametrize(
    ("gcloud_says", "we_say"),
    [
        ("Quota limit 'TPUV5sLitepod' has been exceeded", "has no quota for it"),
        ("You do not currently have an active account selected", "run `gcloud auth login`"),
        ("ALREADY_EXISTS", "a TPU of that name exists"),
        ("something else", "see its output above"),
    ],
)
def test_a_tpu_that_is_not_made_is_not_deleted(cloud: Cloud, gcloud_says: str, we_say: str) -> None:
    code, _, err = cloud.run("--yes", ANSWERS=json.dumps({"create": [1, gcloud_says]}))
    assert code == 2
    assert gcloud_says in err
    assert we_say in err
    assert cloud.requests == ["create"]


def test_a_failure_on_the_way_deletes_it(cloud: Cloud) -> None:
    code, _, _ = cloud.run("--yes", ANSWERS=json.dumps({"scp": [5, "no route"]}))
    assert code == 5
    assert cloud.requests == ["create", "scp", "delete"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_deletes_it(cloud: Cloud, how: int) -> None:
    process = cloud.start("--yes", str(cloud.script), SLEEP="30")
    deadline = time.monotonic() + 30
    while cloud.requests.count("ssh") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal's Ctrl-C
    else:
        process.send_signal(how)
    process.wait(timeout=30)
    os.killpg(process.pid, signal.SIGKILL)  # what runs on the deleted TPU
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert cloud.requests[-1] == "delete"


LABELLED = """
if what == "create":
    (mark,) = [w for w in words if w.startswith("--labels=")]
    open({label!r}, "w").write(mark.rpartition("=")[2] if os.environ["MADE"] == "ours" else "other")
    time.sleep(60)
if what == "describe":
    print(open({label!r}).read())
    sys.exit()
"""


@pytest.mark.parametrize("whose", ["ours", "another's"])
def test_an_interrupt_while_it_is_made_deletes_only_this_tpu(
    cloud: Cloud, tmp_path: Path, whose: str
) -> None:
    fake, label = tmp_path / "bin" / "gcloud", tmp_path / "label"
    text = fake.read_text().replace("import json", "import time, json", 1)
    added = LABELLED.format(label=str(label))
    fake.write_text(text.replace("answers =", added + "answers =", 1))
    process = cloud.start("--yes", str(cloud.script), MADE=whose)
    while not (label.exists() and label.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert cloud.requests == ["create", "describe"] + ["delete"] * (whose == "ours")
    assert ("so none is deleted; make sure that it" in err) == (whose != "ours")


def test_a_tpu_that_cannot_be_deleted_is_shouted_about(cloud: Cloud) -> None:
    code, _, err = cloud.run("--yes", ANSWERS=json.dumps({"delete": [1, "try later"]}))
    assert code == 0, "the script's own"
    assert "COULD NOT BE DELETED AND STILL COSTS MONEY; run: gcloud compute tpus tpu-vm dele" in err


def test_the_command_that_deletes_a_kept_one_is_shown(cloud: Cloud) -> None:
    code, out, _ = cloud.run("--yes", "--keep")
    assert code == 0
    assert "delete" not in cloud.requests
    assert "is kept and costs money until: gcloud compute tpus tpu-vm delete" in out


@pytest.mark.parametrize(("word", "code"), [("--dry-run", 0), ("--keep", 2)])
def test_google_cloud_is_not_called_without_yes(cloud: Cloud, word: str, code: int) -> None:
    found, out, err = cloud.run(word)
    assert found == code
    assert cloud.requests == []
    lines = [shlex.split(line) for line in out.splitlines()]
    assert lines[0][:5] == ["gcloud", "compute", "tpus", "tpu-vm", "create"]
    assert len(lines) == (8 if word == "--dry-run" else 7)
    assert ("give --yes to run these" in err) == (word != "--dry-run")


def test_what_a_dry_run_prints_is_what_bash_runs(cloud: Cloud) -> None:
    _, out, _ = cloud.run("--dry-run", "--queued")
    path = f"{cloud._bin}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", out], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "started with []" in done.stdout
    assert cloud.requests[-1] == "delete"


def test_the_page_shows_what_a_dry_run_prints(cloud: Cloud, tmp_path: Path) -> None:
    blocks = [fence.text for fence in fences(ROOT / "docs" / "tpu.md")]
    (requests,) = [b for b in blocks if b.startswith("tfaccel tpu run ")]
    (shown,) = [b for b in blocks if b.startswith("gcloud ")]
    (tmp_path / "train.py").write_text("")
    words = shlex.split(requests.replace("\\\n", ""))[1:]
    done = subprocess.run(
        [sys.executable, "-m", "tfaccel.cli", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == shown


def test_a_missing_gcloud_is_an_error(cloud: Cloud) -> None:
    code, _, err = cloud.run("--yes", path="/nonexistent")
    assert code == 2
    assert "gcloud is not installed" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name", "My TPU", "x.py"], "there is no script 'x.py'"),
        (["--name", "My TPU", __file__], "--name is 'My TPU'; expected lower-case letters"),
        (["--env", "A", __file__], "--env is 'A'; expected NAME=VALUE"),
        (["--accelerator-type", "v4-32", __file__], "v4-32 has several hosts"),
    ],
)
def test_mistakes_are_one_line(cloud: Cloud, words: list[str], says: str) -> None:
    process = cloud.start(*words)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert says in err


@pytest.mark.parametrize(
    ("accelerator", "software"),
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v3-8", "tpu-ubuntu2204-base"),
    ],
)
def test_the_software_fits_the_accelerator(accelerator: str, software: str) -> None:
    job = TpuJob(Path("a.py"), (), "n", "z", "p", accelerator)
    assert f"--version={software}" in gcloud.create(job)
    assert "--project=p" in gcloud.create(job)


def test_a_pod_is_driven_from_its_first_host() -> None:
    software = "tpu-vm-tf-2.18.0-pod-pjrt"
    job = TpuJob(Path("a.py"), (), "mine", "z", None, "v4-32", software, install=("tfaccel",))
    assert job.is_pod
    installs, starts = gcloud.install(job), gcloud.start(job)
    assert "--worker=all" in installs
    assert installs[-1].endswith("; python3 -m pip install tfaccel"), "the servers' TensorFlow"
    assert "--worker=0" in starts
    assert "env TPU_NAME=mine TPU_LOAD_LIBRARY=0 python3 -u a.py" in starts[-1]
    one = TpuJob(Path("a.py"), (), "mine", "z", None, "v6e-8")
    assert "--worker=all" in gcloud.start(one)
    assert "tensorflow-tpu==2.20.0" in gcloud.install(one)[-1]
    assert gcloud.install(one)[-1].endswith(f" tfaccel=={tfaccel.__version__}"), "as here"


# --- tfaccel launch --engine tpu-vm ------------------------------------------------------------


def launch(cloud: Cloud, *words: str, **variables: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "tfaccel.cli", "launch", "--engine", "tpu-vm"]
    where = ["--name", f"t{os.getpid()}-launch", "--zone=z-a", "--accelerator-type=v5litepod-4"]
    done = subprocess.run(
        [*command, *where, *words],
        cwd=cloud.script.parent,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{cloud._bin}:{os.environ['PATH']}",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_engine_starts_again_and_brings_the_logs(cloud: Cloud, tmp_path: Path) -> None:
    """Told to stop, then failed, then failed once more than it may."""
    more = """
tries = os.path.getsize("tries") if os.path.exists("tries") else 0
open("tries", "a").write("x")
sys.exit([33, 7, 33, 8, 0][tries])
"""
    cloud.script.write_text(SCRIPT.replace('sys.exit(int(os.environ.get("CODE", 0)))', more))
    logs = tmp_path / "my logs"
    words = ["--yes", "--max-restarts=1", f"--log-dir={logs}", "--env=GREETING=it's me"]
    code, out, err = launch(cloud, *words, cloud.script.name, "a b")
    assert code == 8, out + err
    assert out.count("started with ['a b'] it's me") == 4
    assert (logs / "rank-0.log").read_text().count("started with") == 4
    assert cloud.requests == ["create", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]


def test_the_engine_confirms_first(cloud: Cloud) -> None:
    code, out, err = launch(cloud, cloud.script.name)
    assert code == 2
    assert "give --yes to run these" in err
    dry_run = launch(cloud, "--dry-run", cloud.script.name)
    assert dry_run == (0, out, "")
    assert cloud.requests == []


def test_the_engine_runs_modules_of_this_folder(cloud: Cloud) -> None:
    (cloud.script.parent / "pkg").mkdir()
    (cloud.script.parent / "pkg" / "train.py").write_text("import sys; print('module', sys.argv)")
    code, out, err = launch(cloud, "--yes", "-m", "pkg.train", "--x")
    assert code == 0, out + err
    assert "module ['" in out
