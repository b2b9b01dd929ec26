"""Compute kernels of the GSPN workbench: the three-way line scan and windowed attention.

Every operator lives in its own folder with the same four files: `__init__.py` (the public function and its argument
checks), `reference.py` (plain PyTorch, the definition), `cpu.py` (numba) and `gpu.py` (Triton). This package never
imports `workbench`.
"""

#: The distribution that this package belongs to; another distribution on the package index is also named `kernels`.
DISTRIBUTION = "gspn-workbench"
