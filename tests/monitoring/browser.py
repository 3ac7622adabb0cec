"""Pictures of pages, by a browser without a screen."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# The machine may have no network, and Chromium would ask for updates.
_ALONE = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def screenshot(page: Path, picture: Path, width: int = 1000, height: int = 1200) -> None:
    """Writes a PNG file of what a browser shows of a page.

    Args:
        page: an HTML file.
        picture: what to write.
        width: of the window, in pixels.
        height: of the window, in pixels.
    """
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *(CHROMIUM, *_ALONE, f"--user-data-dir={profile}"),
                *(f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri()),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
