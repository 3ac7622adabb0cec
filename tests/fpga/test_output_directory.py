"""The directory of an export: nothing of the user's is removed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tfaccel.errors import FpgaError
from tfaccel.fpga import output_directory


def test_a_directory_is_made_with_its_parents_and_an_empty_one_is_taken(tmp_path: Path) -> None:
    for _ in range(2):
        assert (
            output_directory.prepare(tmp_path / "a" / "b") / output_directory.LOG
        ).read_text() == ""
    assert output_directory.prepare(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_what_an_export_wrote_is_removed_by_the_next(tmp_path: Path) -> None:
    home = output_directory.prepare(tmp_path / "out")
    (home / "firmware").mkdir()
    (home / "firmware" / "a.cpp").touch()
    output_directory.record_files(home)
    output_directory.prepare(home)
    assert not (home / "firmware").exists()


@pytest.mark.parametrize("name", ["export.log", "notes.txt", "model.keras"])
def test_what_it_did_not_write_is_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FpgaError, match=rf"holds something else \({name}\)"):
        output_directory.prepare(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_what_was_added_to_an_export_is_kept(tmp_path: Path) -> None:
    home = output_directory.prepare(tmp_path / "out")
    (home / "held_out.npz").write_text("mine")
    with pytest.raises(FpgaError, match=r"holds something else \(held_out.npz\)"):
        output_directory.prepare(home)
    assert (home / "held_out.npz").read_text() == "mine"


def test_a_place_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FpgaError, match="is a file; expected a new or empty directory"):
        output_directory.prepare(tmp_path / "file")
    with pytest.raises(FpgaError, match="cannot be created") as caught:
        output_directory.prepare(tmp_path / "file" / "below")
    assert "\n" not in str(caught.value)


def test_each_worker_of_a_job_has_a_place_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert output_directory.worker_directory(out, None) == out
    for rank, name in ((0, "out"), (1, "out.worker-1")):
        strategy = SimpleNamespace(cluster=SimpleNamespace(is_chief=rank == 0, rank=rank))
        assert output_directory.worker_directory(out, strategy) == tmp_path / name
