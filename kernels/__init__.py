"""Compute kernels of the GSPN workbench: the three-way line scan and windowed attention.

Every operator lives in its own folder with the same four files: `__init__.py` (the public function and its argument
checks), `reference.py` (plain PyTorch, the definition), `cpu.py` (numba) and `gpu.py` (Triton). This package never
imports `workbench`.
"""

import os

#: The distribution that this package belongs to; another distribution on the package index is also named `kernels`.
DISTRIBUTION = "gspn-workbench"

# torch and numba each bring a pool of OpenMP threads. By default a pool's idle threads spin for a while after every
# parallel region, on the cores that the other pool then needs: with two cores a forward pass took five times as long.
# Read when the OpenMP library is loaded, so it helps only if this package is imported before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
