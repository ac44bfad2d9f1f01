"""Settings for every test."""

import os

from hypothesis import settings

# The first call of a kernel compiles, so no deadline. CI must not fail by chance, so it draws the same examples.
settings.register_profile("packtrain", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("packtrain")
