"""The analysis of a web shop's access log, as a plain loop and as a bag."""

from __future__ import annotations

import gzip
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import taskloom

Record = dict[str, Any]

# 203.0.113.7 - - [12/Mar/2026:08:15:42 +0000] "GET /item/42 HTTP/1.1" 200 5123 0.034
LINE = re.compile(
    r"(?P<host>\S+) \S+ \S+ \[[^:\]]+:(?P<hour>\d\d):[^\]]+\] "
    r'"(?P<method>[A-Z]+) (?P<path>\S+) [^"]*" (?P<status>\d{3}) (?P<bytes>\d+) (?P<seconds>[\d.]+)\s*$'
)


def write_logs(days: Iterable[int], folder: Path, lines: int) -> list[Path]:
    """Write log files, every second one compressed. The same arguments always give the same files.

    Args:
        days: a file for each of these numbers.
        folder: where to.
        lines: how many lines each has.

    Returns:
        Their paths.

    Raises:
        FileExistsError: there is another file of this name, which is left as it is.
    """
    paths = []
    for day in days:
        text = "".join(_make_lines(day, lines)).encode()
        path = folder / f"access-{day:03d}.log"
        if day % 2:
            path = folder / f"access-{day:03d}.log.gz"
            # without the time of day in its header, which would make each run's file another one
            text = gzip.compress(text, compresslevel=1, mtime=0)
        try:
            with path.open("xb") as file:
                file.write(text)
        except FileExistsError:
            if path.read_bytes() != text:
                raise
        paths.append(path)
    return paths


def _make_lines(day: int, lines: int) -> Iterator[str]:
    draw = random.Random(day)
    pages = ["/", "/cart", "/login", "/search", *[f"/item/{n}" for n in range(300)]]
    weights = [60, 20, 15, 40, *[300 / (n + 10) for n in range(300)]]
    date = f"{1 + day % 28:02d}/Mar/2026"
    drawn = draw.choices(pages, weights, k=lines)
    statuses = draw.choices(("200", "304", "404", "500"), (90, 6, 3, 1), k=lines)
    for n in range(lines):
        second = n * 86_400 // lines
        if draw.random() < 0.002:
            yield f"192.0.2.{draw.randrange(256)} - - [{date}:{second // 3600:02d}:broken line\n"
            continue
        seconds = draw.expovariate(20.0)
        yield (
            f"203.0.113.{draw.randrange(256)} - - "
            f"[{date}:{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d} +0000] "
            f'"GET {drawn[n]} HTTP/1.1" {statuses[n]} {draw.randrange(50_000)} {seconds:.6f}\n'
        )


# The steps. Both ways below use them.


def parse(line: str) -> Record | None:
    """A line as a record, or None for one that is broken."""
    match = LINE.match(line)
    if match is None:
        return None
    return {
        "host": match["host"],
        "hour": int(match["hour"]),
        "path": match["path"],
        "status": int(match["status"]),
        "bytes": int(match["bytes"]),
        "seconds": float(match["seconds"]),
    }


def is_record(record: Record | None) -> bool:
    return record is not None


def is_ok(record: Record) -> bool:
    return bool(record["status"] < 400)


def hour_of(record: Record) -> int:
    return int(record["hour"])


def add_bytes(total: int, record: Record) -> int:
    return int(total + record["bytes"])


def add(x: int, y: int) -> int:
    return x + y


def by_count(item: tuple[str, int]) -> tuple[int, str]:
    """The name decides where counts are equal, so that there is one right answer."""
    return item[1], item[0]


def by_duration(record: Record) -> tuple[float, str, str]:
    return record["seconds"], record["path"], record["host"]


def plain_loop(files: Iterable[Path]) -> dict[str, Any]:
    """The analysis as anybody would write it first."""
    status: Counter[int] = Counter()
    paths: Counter[str] = Counter()
    hours: Counter[int] = Counter()
    hosts: set[str] = set()
    slowest: list[Record] = []
    for path in files:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for line in file:
                record = parse(line)
                if not is_record(record):
                    continue
                assert record is not None
                status[record["status"]] += 1
                hosts.add(record["host"])
                hours[hour_of(record)] += record["bytes"]
                if is_ok(record):
                    paths[record["path"]] += 1
                slowest.append(record)
                if len(slowest) >= 1000:
                    slowest = sorted(slowest, key=by_duration, reverse=True)[:3]
    return {
        "requests by status": dict(status),
        "most wanted pages": sorted(paths.items(), key=by_count, reverse=True)[:5],
        "bytes by hour": dict(hours),
        "visitors": len(hosts),
        "slowest requests": sorted(slowest, key=by_duration, reverse=True)[:3],
    }


def with_bag(files: list[Path]) -> dict[str, Any]:
    """The analysis as bags: nothing is computed yet, ``taskloom.compute(...)`` does that, all of it at once."""
    lines = taskloom.bag.read_text(files)
    records = lines.map(parse).filter(is_record)
    ok = records.filter(is_ok)
    return {
        "requests by status": records.pluck("status").frequencies(),
        "most wanted pages": ok.pluck("path").frequencies().topk(5, key=by_count),
        "bytes by hour": records.foldby(hour_of, add_bytes, 0, add, 0),
        "visitors": records.pluck("host").distinct().count(),
        "slowest requests": records.topk(3, key=by_duration),
    }


def tidy(result: dict[str, Any]) -> dict[str, Any]:
    """A computed bag's values in the form of :func:`plain_loop`: pairs as dicts."""
    pairs = ("requests by status", "bytes by hour")
    return {name: dict(value) if name in pairs else value for name, value in result.items()}
