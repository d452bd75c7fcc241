"""Integer-only numba kernels: the same bytes on every machine. Each has a numpy reference in tests/."""
