"""Collectives between workers that TensorFlow does not bring: over MPI."""
