"""``python -m taskloom.node LIFE``: a worker process of a LocalCluster, which says on its standard input what it is to be.

It ends when the pipe LIFE does, which is when the program that started it has ended, in whatever way.
"""

import json
import os
import signal
import sys

from taskloom.local.child import die_with_parent
from taskloom.node.worker import run_worker

if __name__ == "__main__":
    life = int(sys.argv[1])
    signal.signal(signal.SIGINT, lambda *_: None)  # what Ctrl-C means is for the client to say
    die_with_parent(life)
    os.set_inheritable(life, False)
    hello = json.load(sys.stdin)
    sys.path[:] = hello.pop("path")
    sys.argv[:] = hello.pop("argv")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    run_worker(**hello)
