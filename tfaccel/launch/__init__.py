"""Start the workers of a job: one engine per file, and what they share.

`environment`, `failure` and `output` are independent of engines; `process` is for engines that
start the workers themselves.
"""

from __future__ import annotations
