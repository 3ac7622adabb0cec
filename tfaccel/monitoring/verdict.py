"""The verdict: what bounds a training run, in a sentence, and what to change.

A pure function of the measurements. A step of synchronous training ends when the slowest worker and
the sum over all of them are done, so its time is attributed to

- the slowest worker, or several: how much longer it is busy than the others;
- the input and Python between steps: a typical worker's wait for them, so that a single waiting
  worker counts as slow;
- communication: the wait of the worker that waits least for the others;
- computing: the rest.

The largest avoidable part determines the verdict, if it is at least a fifth of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tfaccel.monitoring.run import Cause, Run
from tfaccel.monitoring.summary import PARTS, Slowest, WorkerSummary, slowest
from tfaccel.monitoring.units import percent

BOUND = 0.2
"""The share of a step from which the input, the network, … bounds it."""

INPUT, COMMUNICATION, HOST = "input-bound", "communication-bound", "host-bound"
STRAGGLER, COMPUTE, UNKNOWN = "straggler", "compute-bound", "unknown"

_NAMES = {
    "input": "waiting for input",
    "compute": "computing",
    "communication": "communication that is not hidden",
    "host": "Python between steps",
}
_TRANSPORTS = {
    "ring": "install tfaccel[mpi], whose collectives between CPUs are faster than TensorFlow's "
    "ring, or ",
    "auto": "",
}


@dataclass(frozen=True)
class Verdict:
    """What bounds a run.

    Attributes:
        kind: one of the names above.
        share: of a step, from 0 to 1; None where it is not known.
        sentence: the verdict in words.
        advice: what to change.
    """

    kind: str
    share: float | None
    sentence: str
    advice: str

    def __str__(self) -> str:
        """The sentence and the advice."""
        return f"{self.sentence} {self.advice}".rstrip()


def verdict(
    summaries: Sequence[WorkerSummary], runs: Sequence[Run] = (), causes: Sequence[Cause] = ()
) -> Verdict:
    """Decides what bounds a run.

    Args:
        summaries: of all workers.
        runs: the facts about them.
        causes: found within the parts.
    """
    if not summaries or not all(s.steps and s.seconds > 0 for s in summaries):
        return Verdict(UNKNOWN, None, "No step was measured.", "")
    by_rank = {run.worker: run for run in runs}
    first = by_rank.get(min(by_rank, default=0), Run(0, 0))
    slow, shares = slowest(summaries), _shares(summaries)
    step_s = max(s.step_s for s in summaries)
    lag = slow.lag_s / step_s if slow is not None else 0.0
    avoidable = {STRAGGLER: lag, INPUT: shares["input"], HOST: shares["host"]}
    avoidable[COMMUNICATION] = shares["communication"]
    kind = max(avoidable, key=lambda each: avoidable[each] or 0.0)
    share = avoidable[kind]
    if share is None or share < BOUND:
        return _compute(summaries, shares, first)
    if kind == STRAGGLER and slow is not None:
        return _straggler(slow, summaries, by_rank, share)
    if kind == INPUT:
        return _input(share, first, causes)
    if kind == HOST:
        return _host(share, summaries, causes)
    return _communication(share, first, len(summaries))


def _shares(summaries: Sequence[WorkerSummary]) -> dict[str, float | None]:
    """A typical worker's time for each part; None if unknown for one worker."""
    shares: dict[str, float | None] = {}
    for part in PARTS:
        each = [s.share(part) for s in summaries]
        known = sorted(v for v in each if v is not None)
        if len(known) < len(each):
            shares[part] = None
        elif part == "communication":
            shares[part] = known[0]
        else:
            shares[part] = known[(len(known) - 1) // 2]
    return shares


def _input(share: float, run: Run, causes: Sequence[Cause]) -> Verdict:
    cause = max(
        (c for c in causes if c.part == "input"), key=lambda c: c.seconds or 0.0, default=None
    )
    if cause is not None:
        what = cause.what
    elif len(run.input_candidates) == 1:
        (what,) = run.input_candidates
    elif run.input_candidates:
        what = f"its input: one of {', '.join(run.input_candidates)}"
    else:
        what = f"its input ({run.input})" if run.input else "its input"
    return Verdict(
        INPUT,
        share,
        f"input-bound: {percent(share)} of a step waits for {what}.",
        run.input_advice or "Prepare batches ahead and in parallel (`tf.data`).",
    )


def _host(
    host_share: float, summaries: Sequence[WorkerSummary], causes: Sequence[Cause]
) -> Verdict:
    timed = [c for c in causes if c.part == "host" and c.seconds and c.steps]
    cause = max(timed, key=lambda c: c.seconds or 0.0, default=None)
    sentence = f"host-bound: {percent(host_share)} of a step is Python between steps"
    share = (cause.seconds or 0.0) / cause.steps / summaries[0].step_s if cause is not None else 0.0
    if cause is not None and share > host_share / 2:
        advice = "Do less in it, do it every few batches or once per epoch, or in a thread."
        return Verdict(HOST, host_share, f"{sentence}, most of it {cause.what}.", advice)
    advice = "Run several steps in one call: compile(steps_per_execution=...), or larger batches."
    return Verdict(HOST, host_share, f"{sentence}.", advice)


def _communication(share: float, run: Run, workers: int) -> Verdict:
    among = f"{workers} workers" if workers > 1 else "the replicas"
    advice = f"Measure the links with `tfaccel bench communication`; {_transport(run)}"
    advice += "send less: a larger batch, gradient_compression=, gradient_accumulation='local' or "
    advice += "local_steps=."
    return Verdict(
        COMMUNICATION,
        share,
        f"communication-bound: {percent(share)} of a step waits for sums over {among} that "
        "computing does not hide.",
        advice,
    )


def _transport(run: Run) -> str:
    on_cpus = all(name.startswith("CPU") for name in run.devices)
    return _TRANSPORTS.get(run.communication, "") if on_cpus else ""


def _straggler(
    slow: Slowest, summaries: Sequence[WorkerSummary], runs: dict[int, Run], share: float
) -> Verdict:
    by_rank = {s.worker: s for s in summaries}
    one = by_rank[slow.worker]
    others = [s for rank, s in by_rank.items() if rank not in slow.workers]
    parts = {
        part: _a_step(one, part) - min(_a_step(other, part) for other in others)
        for part in ("input", "compute", "host")
    }
    part = max(parts, key=lambda each: parts[each])
    who, takes, its, it = _words(slow.workers, runs)
    sentence = (
        f"straggler: {who} {takes} {slow.own_s * 1e3:.1f} ms for {its} own part of a step, the "
        f"others {slow.others_s * 1e3:.1f} ms, so they wait for {it} during {percent(share)} of a "
        f"step; most of the difference is {_NAMES[part]}."
    )
    advice = {
        "compute": f"Look for other processes on {its} cores, fewer or slower cores, or thermal "
        "throttling.",
        "input": f"Look at {its} disk, {its} network, and other processes that read there.",
        "host": f"Look for a callback that does its work on {it} alone.",
    }[part]
    return Verdict(STRAGGLER, share, sentence, advice)


def _words(ranks: Sequence[int], runs: dict[int, Run]) -> tuple[str, str, str, str]:
    """Workers with their names, and the words of a sentence about them."""
    names = (runs[rank].name if rank in runs else "" for rank in ranks)
    each = zip(ranks, names, strict=True)
    who = [f"{rank} ({name})" if name else str(rank) for rank, name in each]
    if len(who) == 1:
        return f"worker {who[0]}", "takes", "its", "it"
    return f"workers {', '.join(who[:-1])} and {who[-1]}", "take", "their", "them"


def _a_step(summary: WorkerSummary, part: str) -> float:
    return (getattr(summary, f"{part}_s") or 0.0) / summary.steps


def _compute(
    summaries: Sequence[WorkerSummary], shares: dict[str, float | None], run: Run
) -> Verdict:
    share = shares["compute"]
    if share is None:
        return Verdict(
            UNKNOWN, None, "No part of the steps could be measured.", "; ".join(run.not_measured)
        )
    sentence = f"compute-bound: {percent(share)} of a step is computing"
    if shares["communication"] is None and run.workers > 1:
        sentence += " and communication, which cannot be separated here"
    avoidable = {part: shares[part] for part in ("input", "communication", "host")}
    known = {part: value for part, value in avoidable.items() if value is not None}
    if known:
        part = max(known, key=lambda each: known[each])
        sentence += f"; next is {_NAMES[part]}, {percent(known[part])}"
    mfu = [s.mfu for s in summaries if s.mfu is not None]
    if len(mfu) == len(summaries):
        sentence += f"; {percent(min(mfu))} of the devices' peak is used"
    advice = "More devices, lower precision (precision=), XLA (xla=) or a larger batch."
    return Verdict(COMPUTE, share, f"{sentence}.", advice)
