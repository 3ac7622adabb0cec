"""The table: every module of programs, imported in the order of the kinds."""

from __future__ import annotations

import importlib

from tests.programs.program import PROGRAMS, Program

__all__ = ["MODULES", "PROGRAMS", "Program"]

MODULES = (
    "losses_of_the_batch",
    "losses_of_layers",
    "steps_for_tf_distribute",
    "gradients_in_a_step",
    "embedding_gradients",
    "state_of_layers",
    "seeds",
    "parts_of_a_batch",
    "eager_and_graphs",
    "models_without_call",
    "outside_scope",
    "custom_loops",
    "strings",
    "empty_replicas",
    "mesh_features",
    "around_training",
    "rare_operations",
    "own_test_steps",
    "flows_and_experts",
    "later_steps",
)
for module in MODULES:
    importlib.import_module(f"tests.programs.{module}")

# Whichever of them was imported before.
_in_order = sorted(
    PROGRAMS.items(), key=lambda row: MODULES.index(row[1].run.__module__.rpartition(".")[2])
)
PROGRAMS.clear()
PROGRAMS.update(_in_order)
