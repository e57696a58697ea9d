"""What holds for every test: hypothesis makes the same examples each time, so that a commit is red or green, not both.

`HYPOTHESIS_PROFILE=search pytest …` looks for new ones.
"""

import os

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
