"""What a monitor writes and draws, from figures alone."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.monitoring.given import window
from tfaccel import cli
from tfaccel.monitoring import charts, log_files, memory, records, scalars, text, window_gather
from tfaccel.monitoring.page import page
from tfaccel.monitoring.peaks import peak_flops
from tfaccel.monitoring.records import Record
from tfaccel.monitoring.run import Cause, Run
from tfaccel.monitoring.split import Moments, split
from tfaccel.monitoring.summary import summarize

RUNS = (
    Run(1000, 0, 2, name="a:1", devices=("CPU:0",), communication="mpi", input="tf.data: map"),
    Run(1000, 1, 2, name="b:1", devices=("CPU:0",), not_measured=("MFU: no peak is known",)),
)
WINDOWS = tuple(
    window(rank, number, compute=4 + rank, communication=2 - rank, input=1, examples=320.0)
    for number in (0, 1, 2)
    for rank in (0, 1)
)
CAUSE = Cause("host", "in Logs.on_train_batch_end at <train>.py:9", 1.5, 20)


def test_parts_add_up_to_the_time_of_the_steps() -> None:
    steps = [Moments(0, 1, 3, 7), Moments(7, 8, 8.5, 12), Moments(12, 12, 13, 20)]
    parts = split(steps)
    assert parts.seconds == 20
    assert (parts.input_s, parts.step_s, parts.host_s) == (3.5, 14.5, 2)


def test_collectives_that_python_calls_are_no_wait_for_input() -> None:
    parts = split([Moments(0, 4, 10, 12, None, 1.0, 5.0)])
    assert (parts.host_s, parts.input_s, parts.collective_s, parts.step_s) == (3.0, 1.0, 6.0, 2.0)
    assert parts.seconds == 12


def test_a_device_that_is_busy_does_not_wait() -> None:
    # The batch of the second step is there before the first step is done, and so is Python.
    busy = [Moments(0, 0, 1, 1.1, 10), Moments(1.1, 3, 9, 9.1, 19)]
    assert split(busy).input_s == 1
    assert split(busy).host_s == 0
    assert split(busy).step_s == 18
    # It comes two seconds after.
    late = [Moments(0, 0, 1, 1.1, 10), Moments(1.1, 3, 12, 12.1, 19)]
    assert split(late).input_s == 3
    assert split(late).seconds == 19


def test_windows_are_sent_as_numbers() -> None:
    for one in (*WINDOWS, window(2, 7, compute=1, communication=None, tokens=5.0)):
        assert window_gather.decode(window_gather.encode(one)) == one


def test_a_record_is_read_back() -> None:
    lines = [records.line(item) for item in (*RUNS, *WINDOWS, WINDOWS[0])]
    lines += [records.cause_line(CAUSE, 1000, 0), "", "{", '{"kind": "wind', "7"]
    lines.append(records.line(window(0, 1, run=5)))  # of a run before
    assert records.read(lines) == Record(RUNS, WINDOWS, (CAUSE,), ended=False)
    assert records.read([*lines, records.end_line(1000, 1)]).ended is False
    assert records.read([*lines, records.end_line(1000, 0)]).ended is True
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"kind": "window", "run": 1000, "worker": 0}',
        b'{"kind": "run", "run": "1000", "worker": 0}',
        b'{"kind": "window", "run": null, "worker": 0}',
        b'{"kind": ["run"], "run": 1000, "worker": 0}',
        b'{"kind": "cause", "run": 1000, "worker": 0, "what": "\xc3',
    ],
)
def test_damaged_lines_are_left_out(tmp_path: Path, damaged: bytes) -> None:
    write(tmp_path)
    path = tmp_path / records.file_name(0)
    expected = records.read_path(tmp_path)
    path.write_bytes(damaged + b"\n" + path.read_bytes() + b"\n" + damaged)
    assert records.read_path(tmp_path) == expected


def test_a_run_does_not_continue_the_line_of_one_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / records.file_name(1)
    path.write_text('{"kind": "win', "utf-8")
    log_files.prepare(str(tmp_path), 1)
    log_files.LogFiles(str(tmp_path), RUNS[1], RUNS)
    assert records.read_path(path).runs == (RUNS[1],)


def test_of_several_runs_the_newest_is_read() -> None:
    newer = [records.line(dataclasses.replace(w, run=2000)) for w in WINDOWS[:2]]
    lines = [*newer, *(records.line(w) for w in WINDOWS)]
    assert [w.run for w in records.read(lines).windows] == [2000, 2000]


def test_the_line_of_a_window() -> None:
    compiles, (first, second) = WINDOWS[:2], WINDOWS[2:4]
    assert text.window_line(compiles) == "monitor: steps 1-10: 7.0 s including compilation"
    line = text.window_line([dataclasses.replace(first, memory=2**30, peak_memory=2**31), second])
    assert line.startswith(
        "monitor: steps 11-20: 700.0 ms/step: input 14 %, compute 57 %, comm 29 %, host 0 %; "
    )
    assert "45.7 examples/s; memory 1.0 GiB (peak 2.0 GiB)" in line
    assert line.endswith("slowest worker 1, by 100.0 ms")
    nothing = window(compute=5, input=None, communication=None, host=None)
    assert "input -, compute 100 %, comm -, host -; - examples/s; memory -" in text.window_line(
        [nothing]
    )


def test_notes_say_what_was_left_out() -> None:
    found = text.notes([*WINDOWS, window(0, 3, compute=1, between_s=2.5)], RUNS)
    assert "compiling: 7.0 s, not in the table" in found
    assert "between epochs (validation, callbacks): 2.5 s, not in the table" in found
    assert "-: MFU: no peak is known" in found


def test_scalars_have_no_figure_that_was_not_measured() -> None:
    found = scalars.scalars(WINDOWS[2:4])
    assert found["monitor/share/communication"] == pytest.approx(2 / 7)
    assert found["monitor/local_step_time_ms/worker_1"] == pytest.approx(600)
    assert not [name for name in found if "mfu" in name or "memory" in name or "tokens" in name]


class Page(HTMLParser):
    """What a page needs from elsewhere, and whether its elements close."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [f"{tag} {n}" for n, _ in attrs if n in ("src", "href", "xlink:href")]
        if tag in ("script", "iframe"):
            self.outside.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [f"{tag} {n}" for n, _ in attrs if n in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_needs_nothing_else_and_has_every_figure() -> None:
    html = page(Record(RUNS, WINDOWS, (CAUSE,), ended=True))
    read = Page(html)
    assert read.open == []
    assert read.outside == []
    assert "url(" not in html
    assert "@import" not in html
    assert html.count("<svg viewBox") == 4  # bars of two workers, examples, busy time
    assert html.count('<rect class="compute" x') == 4
    assert "hostbusyexamples/s" in read.words
    assert "Busy time per step" in read.words
    assert "communicating over mpi" in read.words
    assert "MFU: no peak is known" in read.words


def test_a_page_of_a_run_that_only_compiled_or_is_hostile() -> None:
    run = Run(1000, 0, input="<script>alert(1)</script>", name="<b>")
    html = page(Record((run,), (window(number=0, input=9, compute=1),)))
    assert "<script>" not in html
    assert Page(html).open == []
    assert "running, or stopped" in html


def test_bars_are_stacked_to_scale() -> None:
    layers = [charts.Series(n, (v, None), n) for n, v in (("a", 30.0), ("b", 10.0))]
    drawn = charts.bars(["one", "two"], layers, "ms")
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"><title>', drawn)]
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.01)
    assert len(heights) == 2


@pytest.mark.parametrize("most", [0.0, 0.003, 0.9, 1.0, 7.0, 37.0, 99.0, 1234.5, 8e6])
def test_ticks_are_few_and_reach_the_largest_value(most: float) -> None:
    found = charts.ticks(most)
    assert found[0] == 0
    assert found[-1] >= most
    assert 2 <= len(found) <= 6


def test_a_line_has_a_gap_where_nothing_is_known() -> None:
    drawn = charts.lines(
        ["a", "b", "c", "d"], [charts.Series("x", (1.0, None, 2.0, 3.0), "w0")], ""
    )
    (path,) = re.findall(r' d="([^"]+)"', drawn)
    assert re.sub(r"[\d., ]", "", path) == "MML"


def test_memory_of_this_process() -> None:
    found = memory.of_process()
    assert found.now is not None
    assert found.peak is not None
    assert 1e6 < found.now <= found.peak * 1.01
    assert memory.parse_status("nothing") is None
    assert memory.of_devices(["CPU:0"]) == (None, None)


def test_a_peak_that_is_not_in_the_table_is_not_known() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert peak_flops("NVIDIA H100 PCIe", "float32") == 378e12
    assert peak_flops("NVIDIA H200", "float64") is None
    assert peak_flops("Tesla K80", "float32") is None


# --- The command ------------------------------------------------------------------------------


def write(folder: Path, ended: bool = True) -> None:
    for rank, run in enumerate(RUNS):
        lines = [records.line(run), *(records.line(w) for w in WINDOWS if rank in (0, w.worker))]
        lines += [records.end_line(1000, rank)] * ended
        (folder / records.file_name(rank)).write_text("\n".join(lines), "utf-8")


@pytest.mark.parametrize("name", ["", "worker-1.jsonl"])
def test_the_command_reads_all_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write(tmp_path)
    assert cli.main(["monitor", str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert "steps 11-20: 700.0 ms/step" in said
    assert "compute-bound: 57 % of a step is computing" in said
    assert "not ended" not in said


def test_the_command_follows_a_job_until_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    assert cli.main(["monitor", "--follow", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("steps 11-20") == 1


def test_a_job_that_was_killed_is_followed_until_an_interrupt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    path = tmp_path / records.file_name(0)
    path.write_text("".join(f"{records.line(each)}\n" for each in (*RUNS, *WINDOWS)), "utf-8")
    monkeypatch.setattr("tfaccel.monitoring.command.time.sleep", interrupt)
    assert cli.main(["monitor", "--follow", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "compute-bound" in said
    assert said.endswith("The run is not complete.\n")


def test_the_command_follows_files_that_grow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the files finds what was written since the one before."""
    paths = [tmp_path / records.file_name(rank) for rank in (0, 1)]

    def add(rank: int, *lines: str) -> None:
        with paths[rank].open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def windows(number: int) -> list[str]:
        return [records.line(w) for w in WINDOWS if w.number == number]

    said: list[str] = []
    looks = iter(
        [
            lambda: add(0, *windows(1)),
            lambda: None,
            lambda: add(0, *windows(2)),
            lambda: (add(1, records.end_line(1000, 1)), add(0, records.end_line(1000, 0))),
        ]
    )

    def sleep(seconds: float) -> None:
        said.append(capsys.readouterr().out)
        next(looks)()

    monkeypatch.setattr("tfaccel.monitoring.command.time.sleep", sleep)
    add(0, *map(records.line, RUNS), *windows(0))
    add(1, records.line(RUNS[1]))
    assert cli.main(["monitor", "--follow", str(tmp_path)]) == 0
    assert ["steps 1-" in text for text in said] == [True, False, False, False]
    assert ["steps 11-20" in text for text in said] == [False, True, False, False]
    assert ["steps 21-30" in text for text in said] == [False, False, False, True]
    last = capsys.readouterr().out
    assert "compute-bound" in last
    assert "ms/step:" not in last, "no window is printed twice"
    assert not list(looks)


def test_the_command_writes_json_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ended=False)
    out = tmp_path / "out.html"
    assert cli.main(["monitor", "--json", "--html", str(out), str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["worker"] for one in said["workers"]] == [0, 1]
    assert said["verdict"]["kind"] == "compute-bound"
    assert said["ended"] is False
    assert out.read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["", "missing", "empty.jsonl"])
def test_a_folder_without_a_run_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert cli.main(["monitor", str(tmp_path / name)]) == 2
    assert "has no run of a monitor; expected a directory" in capsys.readouterr().err


def test_summaries_take_the_peak_and_rates_over_all_steady_windows() -> None:
    (chief, other) = summarize([*WINDOWS, window(0, 3, compute=7, examples=390.0, peak_memory=5.0)])
    assert chief.steps == 30
    assert chief.examples_per_second == pytest.approx((320 + 320 + 390) / 21)
    assert chief.peak_memory == 5.0
    assert other.steps == 20
