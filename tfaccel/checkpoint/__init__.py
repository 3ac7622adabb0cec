"""Checkpoints: of a model's variables, and of a whole run, which resumes bit-identically."""

from tfaccel.checkpoint.resume_callback import resume
from tfaccel.checkpoint.variables import restore, save

__all__ = ["restore", "resume", "save"]
