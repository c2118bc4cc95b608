"""The SHA-256 of every file in a folder, as sha256sum prints them, on all CPUs.

    python checksums.py FOLDER

Hashing and reading let other Python threads run, so threads are the right scheduler, and the default of delayed. The
progress bar goes to standard error. Without a folder it makes one with two files.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

import taskloom
from taskloom.diagnostics import ProgressBar


@taskloom.delayed
def checksum(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ProgressBar("checksums", minimum=1.0):  # nothing for what takes less than a second
        sums = taskloom.compute(*[checksum(path) for path in files])
    return [(path.relative_to(folder), digest) for path, digest in zip(files, sums, strict=True)]


def a_folder(folder):
    (folder / "sub").mkdir()
    (folder / "empty").write_bytes(b"")
    (folder / "sub" / "zeros").write_bytes(bytes(1_000_000))
    return folder


with tempfile.TemporaryDirectory() as folder:
    for path, digest in checksums(Path(sys.argv[1]) if sys.argv[1:] else a_folder(Path(folder))):
        print(f"{digest}  {path}")

# Prints:
# e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  empty
# d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025  sub/zeros
