"""Start the workers of a job: one engine per file, what they share beside them.

`environment`, `failure` and `output` are pure of any engine; `process` is for those that start
the workers themselves.
"""

from __future__ import annotations
