"""A report from files with a JSON object a line, some of them broken.

    python sales.py 'sales-*.jsonl'

The usual shape of such work: read, parse, drop what is bad but count it, group, sum up. Parsing is pure Python, so bag
runs it on processes; both answers are computed in one pass over the files.
"""

import json
import sys
import tempfile
from pathlib import Path

import taskloom


def parse(line):
    """A sale, or None for a line that is none."""
    try:
        sale = json.loads(line)
        return {"country": sale["country"], "cents": int(sale["cents"])}
    except (ValueError, KeyError, TypeError):
        return None


def is_sale(sale):
    return sale is not None


def is_broken(sale):
    return sale is None


def country(sale):
    return sale["country"]


def add_sale(total, sale):
    return total + sale["cents"]


def add(x, y):
    return x + y


def report(files):
    parsed = taskloom.bag.read_text(files).map(parse)
    totals = parsed.filter(is_sale).foldby(country, add_sale, 0, add, 0)
    broken = parsed.filter(is_broken).count()
    return taskloom.compute(totals, broken)


def some_files(folder):
    for day in range(3):
        lines = [json.dumps({"country": name, "cents": 100 * n + day}) for n, name in enumerate(["NO", "PT", "JP"])]
        (folder / f"sales-{day}.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    return str(folder / "sales-*.jsonl")


with tempfile.TemporaryDirectory() as folder:
    totals, broken = report(sys.argv[1:] or some_files(Path(folder)))
for name, cents in sorted(totals):
    print(f"{name}  {cents / 100:8.2f}")
print(f"{broken} broken lines")

# Prints:
# JP      6.03
# NO      0.03
# PT      3.03
# 3 broken lines
