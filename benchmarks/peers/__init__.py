"""The parts of `data_parallel.py`: what is trained, by which library, and over which links."""
