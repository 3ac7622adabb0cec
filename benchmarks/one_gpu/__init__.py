"""The processes of `benchmarks/gpu.py`: one model, one way to train it."""
