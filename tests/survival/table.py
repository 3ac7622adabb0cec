"""Kills at random moments: python -m tests.survival.table OUT --kills N --seed S [--write].

Each kind of job runs undisturbed once, and then again while its ranks are killed: as it starts, as
it compiles, or in any moment of its training, saving and validation. All workers are started again
each time, and the end is compared with the undisturbed one bit by bit. A run with the same OUT and
another seed adds to what is there. With --write the table goes into its page.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.checkpoint.same import assert_same
from tests.support import ROOT
from tests.survival import faults
from tests.survival.hosts import Host, hosts
from tests.survival.jobs import STRATEGIES, Job, job, words

DATA = {"arrays": "digits", "tf.data": "transformer", "PyDataset": "digits", "Grain": "transformer"}
"""What is trained on each kind of data."""

PAGE = ROOT / "docs" / "many_machines" / "survival.md"
_BEGIN, _END = "<!-- kills -->\n", "<!-- end of kills -->\n"
_KILLS_OF_A_RUN = 3
_OTHERS_END_S, _OTHERS_START_S = 60.0, 3.0
_SAVE_OR_VALIDATION_S = 0.15


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: when it began to compile, and when it had its first step, in seconds."""

    compiling_s: float
    first_step_s: float
    batches: int


@dataclass(frozen=True)
class Kill:
    """One kill, and what came of it."""

    job: str
    data: str
    moment: str
    rank: int
    batch: int
    ended_s: float | None
    steps_lost: int
    next_step_s: float | None
    cold_s: float  # of the cold starts just before and after its run
    same: bool


def cold_start(on: Sequence[Host], out: Path, script: Sequence[str]) -> float:
    """The seconds from the start of a job to its first step, after which it is ended."""
    with job(on, out, script) as running:
        running.until(lambda: running.newest() > 0)
        return time.monotonic() - running.started


def undisturbed(on: Sequence[Host], out: Path, script: Sequence[str]) -> Whole:
    """Runs a job as it should; once for each folder."""
    record = out / "whole.json"
    if not record.exists():
        with job(on, out, script) as running:
            running.until(lambda: (out / "compiling-0").exists())
            compiling_s = time.monotonic() - running.started
            running.until(lambda: running.newest() > 0)
            first_step_s = time.monotonic() - running.started
            running.succeed()
            record.write_text(json.dumps([compiling_s, first_step_s, running.newest()]))
    return Whole(*json.loads(record.read_text()))


@dataclass(frozen=True)
class Strike:
    """A kill in one try of a job.

    Attributes:
        moment: what it was meant to meet.
        rank: who was killed.
        at: when, by the clock of this process.
        ended_s: seconds until all ranks had ended; None where they had not met yet, and were ended
            as an engine does.
        batch: the last one before it.
        lines: how many were noted until then, in all tries.
    """

    moment: str
    rank: int
    at: float
    ended_s: float | None
    batch: int
    lines: int


def disturbed(
    on: Sequence[Host], out: Path, script: Sequence[str], whole: Whole, kills: int
) -> list[tuple[Strike, int, float | None]]:
    """Runs a job with so many kills, fewer if it has ended before: each with what followed.

    That is how many steps were lost, and the seconds until the next new step; None for a kill after
    the last step. A kill after the first one comes when there has been a new step.
    """
    rng = random.Random(str(out))
    strikes: list[tuple[Strike, int, float | None]] = []
    strike: Strike | None = None
    for left in range(kills, -1, -1):
        with job(on, out, script) as running:
            if strike is not None:
                strikes.append((strike, *_aftermath(running, strike)))
            moment = "training" if strikes else rng.choice(["starting", "compiling", "training"])
            if not left or not _await_moment(running, moment, whole, rng, left):
                running.succeed()
                break
            rank, at = rng.randrange(len(on)), time.monotonic()
            faults.kill(running, rank)
            ended = running.end_within(_OTHERS_END_S if running.has_met() else _OTHERS_START_S)
            ended_s = time.monotonic() - at if ended else None
            assert ended or not running.has_met(), running.output()
            strike = Strike(moment, rank, at, ended_s, running.newest(), len(running.batches()))
            over = strike.batch == whole.batches  # then others may have ended well
            assert all(running.wait()) or over, running.output()
    return strikes


def _aftermath(running: Job, strike: Strike) -> tuple[int, float | None]:
    if not running.until(lambda: running.newest() > strike.batch):
        return 0, None
    next_step_s = time.monotonic() - strike.at
    return strike.batch - (running.batches()[strike.lines] - 1), next_step_s


def _await_moment(
    running: Job, moment: str, whole: Whole, rng: random.Random, kills_left: int
) -> bool:
    """Waits for the moment; False when the run has ended before."""
    if moment == "starting":
        time.sleep(rng.uniform(0, whole.compiling_s))
    elif moment == "compiling":
        running.until(lambda: (running.out / "compiling-0").exists())
        time.sleep(rng.uniform(0, whole.first_step_s - whole.compiling_s))
    else:
        begin = running.newest() + 1
        target = rng.randint(begin, max(begin, whole.batches - kills_left))
        running.until(lambda: running.newest() >= target)
        time.sleep(rng.uniform(0, _SAVE_OR_VALIDATION_S))
    return any(process.poll() is None for process in running.processes)


def is_same(whole: Path, lost: Path, ranks: int) -> bool:
    """Whether a run has ended with the bits of another, and each batch was seen as there."""
    try:
        assert_same(whole, lost, ranks)
    except AssertionError as error:
        print(error)
        return False
    for rank in range(ranks):
        expected, seen = (
            (folder / f"seen-{rank}.jsonl").read_text().splitlines() for folder in (whole, lost)
        )
        if not set(seen) <= set(expected):  # also when it was trained on again
            return False
    return True


def measure(out: Path, name: str, data: str, kills: int, seed: int) -> Iterator[Kill]:
    """The kills of one kind of job on one kind of data."""
    number, script = STRATEGIES[name][0], words(name, data, DATA[data])
    folder = out / f"{name}-{data}".replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    with hosts(number) as on:
        whole = undisturbed(on, folder / "whole", script)
        for run in range(-(-kills // _KILLS_OF_A_RUN)):
            lost = folder / f"lost-{seed}-{run}"
            of_run = min(_KILLS_OF_A_RUN, kills - run * _KILLS_OF_A_RUN)
            cold = [cold_start(on, folder / f"cold-{seed}-{run}-0", script)]
            strikes = disturbed(on, lost, script, whole, of_run)
            cold.append(cold_start(on, folder / f"cold-{seed}-{run}-1", script))
            same = is_same(folder / "whole", lost, number)
            for strike, steps_lost, next_step_s in strikes:
                yield Kill(
                    name,
                    data,
                    strike.moment,
                    strike.rank,
                    strike.batch,
                    strike.ended_s,
                    steps_lost,
                    next_step_s,
                    statistics.mean(cold),
                    same,
                )


def table(kills: Sequence[Kill]) -> str:
    """The table as Markdown."""
    lines = [
        "| job | data | kills | starting, compiling, training | bit-identical | "
        "steps lost, at most | others ended after | next new step after | cold start | ratio |",
        f"|{' --- |' * 10}",
    ]
    for name in STRATEGIES:
        for data in DATA:
            of_column = [one for one in kills if (one.job, one.data) == (name, data)]
            if not of_column:
                continue
            moments = [
                sum(one.moment == m for one in of_column)
                for m in ("starting", "compiling", "training")
            ]
            cells = [
                name,
                f"{data}, {DATA[data]}",
                len(of_column),
                ", ".join(map(str, moments)),
                f"{sum(one.same for one in of_column)} of {len(of_column)}",
                max(one.steps_lost for one in of_column),
                _seconds([one.ended_s for one in of_column if one.ended_s is not None]),
                _seconds([one.next_step_s for one in of_column if one.next_step_s is not None]),
                f"{statistics.median(one.cold_s for one in of_column):.1f} s",
                _ratio(of_column),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "".join(f"{line}\n" for line in lines)


def _seconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} s, at most {max(values):.1f}" if values else ""


def _ratio(kills: Sequence[Kill]) -> str:
    """The median time until the next new step, over that of the cold starts around its run."""
    ratios = [one.next_step_s / one.cold_s for one in kills if one.next_step_s is not None]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=2, help="of each kind of job on each data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="*", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=DATA)
    parser.add_argument("--write", action="store_true", help="put the table into its page")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no host is left behind
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "kills.jsonl"
    for name in options.jobs:
        for data in options.data:
            for kill in measure(options.out, name, data, options.kills, options.seed):
                line = json.dumps(asdict(kill))
                print(line, flush=True)
                with record.open("a") as file:
                    file.write(f"{line}\n")
    kills = [Kill(**json.loads(line)) for line in record.read_text().splitlines()]
    made = table(kills)
    print(made)
    if options.write:
        before, _, rest = PAGE.read_text().partition(_BEGIN)
        PAGE.write_text(f"{before}{_BEGIN}\n{made}\n{_END}{rest.partition(_END)[2]}")


if __name__ == "__main__":
    main()
