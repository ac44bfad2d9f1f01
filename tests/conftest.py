"""Settings for every test."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests and their ranks share the cores; read when torch is first loaded

from hypothesis import settings

# The first call of a kernel compiles, so no deadline. CI must not fail by chance, so it draws the same examples.
settings.register_profile("packtrain", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("packtrain")
