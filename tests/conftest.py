"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# Examples have no deadline: a test must not depend on how busy the machine is.
settings.register_profile("taskloom", deadline=None)
settings.load_profile("taskloom")
