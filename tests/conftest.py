"""How hard the property tests try: ``HYPOTHESIS_PROFILE=ci python -m pytest``.

``dev``, the default, tries the same 50 examples everywhere and every time: a fresh clone passes or fails alike on all
machines, and nobody meets a rare failure that another cannot repeat. ``ci`` and ``thorough`` draw new examples in each
run, for finding what the 50 missed; they print a line that repeats a failure.
"""

import os

from hypothesis import settings

common = {"deadline": None, "print_blob": True}  # the first example of a test warms caches: no time limit
settings.register_profile("dev", max_examples=50, derandomize=True, **common)
settings.register_profile("ci", max_examples=200, **common)
settings.register_profile("thorough", max_examples=1000, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
