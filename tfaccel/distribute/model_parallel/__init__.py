"""Model parallelism: one program over a mesh of devices, with DTensor.

Because the step is one program over the global batch, losses, statistics and metrics need no
fixes here: layouts only determine where each piece of the work is done.
"""
