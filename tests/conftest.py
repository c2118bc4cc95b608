"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# Examples have no deadline: a test must not depend on how busy the machine is.
settings.register_profile("taskloom", deadline=None)
settings.load_profile("taskloom")

# A shell starts what is to run in the background with Ctrl-C ignored, and the programs of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
