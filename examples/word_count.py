"""The most frequent words of text files, counted on all CPUs.

    python word_count.py FILE...

Each file is read, split and counted in one process; only the counts come back. Files that end in .gz, .bz2 or .xz are
read as well, and so are patterns such as 'books/*.txt'. Without files it counts the words of two short poems.
"""

import re
import sys
import tempfile
from pathlib import Path

import taskloom


def words(line):
    return re.findall(r"[a-z']+", line.lower())


def by_count(item):
    word, count = item
    return count, word


def count_words(files, most=5):
    lines = taskloom.bag.read_text(files)
    return lines.map(words).flatten().frequencies().topk(most, key=by_count)


def two_poems(folder):
    (folder / "sea.txt").write_text("The sea is the road of the wind,\nand the wind is the voice of the sea.\n")
    (folder / "hill.txt").write_text("Over the hill and under the hill\nthe road goes on, and on, and still.\n")
    return str(folder / "*.txt")


with tempfile.TemporaryDirectory() as folder:
    files = sys.argv[1:] or two_poems(Path(folder))
    for word, count in count_words(files).compute():
        print(f"{count:6}  {word}")

# Prints:
#      9  the
#      4  and
#      2  wind
#      2  sea
#      2  road
