from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.monitoring.browser import CHROMIUM, screenshot
from tests.monitoring.given import window
from tfaccel.monitoring.page import page
from tfaccel.monitoring.records import Record
from tfaccel.monitoring.run import Run

BLUE, PURPLE = (0x3B, 0x76, 0xC4), (0x8A, 0x55, 0xB5)  # compute, communication


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_the_parts_in_their_proportions(tmp_path: Path) -> None:
    windows = [window(n, 2, compute=3, communication=1, input=0.5, host=0.5) for n in range(2)]
    html, png = tmp_path / "report.html", tmp_path / "report.png"
    html.write_text(page(Record((Run(1000, 0),), tuple(windows), ended=True)), "utf-8")
    screenshot(html, png)
    shown = np.asarray(Image.open(png).convert("RGB"))
    assert shown.shape == (1200, 1000, 3)
    blue, purple = (int((shown == colour).all(-1).sum()) for colour in (BLUE, PURPLE))
    assert blue > 50_000
    assert blue / purple == pytest.approx(3, rel=0.03)
