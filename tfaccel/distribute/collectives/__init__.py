"""Collectives between workers that TensorFlow lacks: over MPI."""
