"""``python -m taskloom.local FD FD FD``: a process of the pool; only :mod:`taskloom.local.processes` starts it."""

import sys

from taskloom.local.child import main

if __name__ == "__main__":
    main(sys.argv[1:])
