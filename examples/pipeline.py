"""Steps that need each other, as a graph written by hand: parse a table, fit a line, find what lies far off.

    python pipeline.py

A graph is a dict, so a program can make it of anything: here the two halves of the data are parsed at the same time. Then
the same graph once more, step by step and with a profiler, to see how often each function ran.
"""

import taskloom
from taskloom.diagnostics import Profiler

TEXT = "\n".join(f"{x},{3 * x + 2 + (40 if x == 7 else 0)}" for x in range(20))


def parse(text, begin, end):
    return [tuple(map(float, line.split(","))) for line in text.splitlines()[begin:end]]


def join(parts):
    return [point for part in parts for point in part]


def fit(points):
    """Least squares: slope and intercept."""
    n = len(points)
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return slope, mean_y - slope * mean_x


def far_off(points, line):
    slope, intercept = line
    return [x for x, y in points if abs(y - slope * x - intercept) > 20]


def without(points, bad):
    return [point for point in points if point[0] not in bad]


graph = {
    "text": TEXT,
    ("part", 0): (parse, "text", 0, 10),
    ("part", 1): (parse, "text", 10, 20),
    "points": (join, [("part", 0), ("part", 1)]),
    "first": (fit, "points"),
    "bad": (far_off, "points", "first"),
    "line": (fit, (without, "points", "bad")),  # a task in a task needs no key
}

bad, (slope, intercept) = taskloom.threaded.get(graph, ["bad", "line"])
print("left out:", bad)
print(f"y = {slope:.2f} x + {intercept:.2f}")

with Profiler() as profile:
    taskloom.get_sync(graph, "line")
for item in sorted(profile.summary(), key=lambda item: item.function):
    print(f"{item.tasks} x {item.function}")

# Prints:
# left out: [7.0]
# y = 3.00 x + 2.00
# 1 x far_off
# 2 x fit
# 1 x join
# 1 x literal
# 2 x parse
