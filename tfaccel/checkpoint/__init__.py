"""Checkpoints: of a model's variables, and of a whole run, from which it goes on bit for bit."""

from tfaccel.checkpoint.resume_callback import resume
from tfaccel.checkpoint.variables import restore, save

__all__ = ["restore", "resume", "save"]
