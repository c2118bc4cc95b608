"""``python -m taskloom``: the same as ``taskloom``."""

from taskloom.cli import main

if __name__ == "__main__":
    main()
