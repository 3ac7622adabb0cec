"""The exit codes by which training signals its launcher what to do next.

Every engine handles them: `PREEMPTED` is tried again and does not count as a restart, where
the engine supports it.

| code | a worker ends with it when | then |
| --- | --- | --- |
| 0 | it is done | the job has succeeded |
| 33 | preempted (SIGTERM), checkpoint saved | all are restarted; not counted |
| 93 | several starts in a row made no new step | the job has failed, and is not started again |
| other | it failed | all start again, up to ``--max-restarts`` times |
"""

from __future__ import annotations

PREEMPTED = 33
"""All that was trained is saved: start again. SkyPilot's documentation uses it for that."""

NO_PROGRESS = 93
"""Starting again is of no use. NVIDIA's resiliency extension has it for "do not requeue"."""
