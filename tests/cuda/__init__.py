"""The package on a CUDA device: the fixture ``card`` is one that computes on the CPU, or that of the machine."""
