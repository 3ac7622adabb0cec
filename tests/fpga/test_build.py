"""The vendor's tool, played by a script: it is started, its report is read, its failure is told.

No tool of a vendor has run here; the report has the form that Vitis HLS writes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tfaccel.errors import FpgaError
from tfaccel.fpga import convert, estimate
from tfaccel.fpga.export_settings import Settings

pytestmark = pytest.mark.usefixtures("needs_hls4ml")

REPORT = """<profile>
<UserAssignments><TargetClockPeriod>5.00</TargetClockPeriod></UserAssignments>
<PerformanceEstimates>
<SummaryOfTimingAnalysis><EstimatedClockPeriod>3.6</EstimatedClockPeriod></SummaryOfTimingAnalysis>
<SummaryOfOverallLatency>
<Best-caseLatency>7</Best-caseLatency><Worst-caseLatency>9</Worst-caseLatency>
<Interval-min>1</Interval-min><Interval-max>2</Interval-max>
</SummaryOfOverallLatency>
</PerformanceEstimates>
<AreaEstimates>
<Resources><LUT>1200</LUT><FF>340</FF><DSP>12</DSP><BRAM_18K>3</BRAM_18K></Resources>
<AvailableResources><LUT>9999</LUT></AvailableResources>
</AreaEstimates>
</profile>"""
WRITES = f"""mkdir -p firmware_prj/solution1/syn/report
echo '<project><solutions><solution name="solution1"/></solutions></project>' > firmware_prj/hls.app
cat > firmware_prj/solution1/syn/report/firmware_csynth.xml <<'END'
{REPORT}
END"""


@pytest.fixture(scope="module")
def project(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> convert.Project:
    home = tmp_path_factory.mktemp("build")
    return convert.convert(saved / "model.keras", home / "out", Settings(), home / "log")


def tool(script: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vitis-run that does this."""
    (home / "bin").mkdir()
    path = home / "bin" / "vitis-run"
    path.write_text(f"#!/bin/bash\necho vitis-run $*\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_its_figures_are_those_of_its_report(
    project: convert.Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    tool(WRITES, tmp_path, monkeypatch)
    estimate.require_tool("Vitis")
    log = tmp_path / "log"
    figures = estimate.build(project, "Vitis", log, 120)
    assert {one.kind for one in figures} == {"synthesised"}
    assert {one.name: one.value for one in figures} == {
        "LUT": 1200,
        "FF": 340,
        "DSP": 12,
        "BRAM_18K": 3,
        "latency, best": 7,
        "latency, worst": 9,
        "interval": 2,
    }
    assert "vitis-run --tcl build_prj.tcl --mode hls" in log.read_text()
    assert capfd.readouterr().out == ""  # where the command's JSON goes


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "vitis-run failed with exit code 1"),
        ("rm -rf firmware_prj", "vitis-run left no report in"),
    ],
)
def test_its_failure_is_one_line_with_the_log(
    script: str,
    said: str,
    project: convert.Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool(script, tmp_path, monkeypatch)
    log = tmp_path / "log"
    with pytest.raises(FpgaError, match=said) as caught:
        estimate.build(project, "Vitis", log, 120)
    assert caught.value.log == log
    assert "vitis-run --tcl" in log.read_text()
    assert "\n" not in str(caught.value)
