"""``python -m taskloom_operator``."""

from __future__ import annotations

import sys

from taskloom_operator.main import main

sys.exit(main())
