"""The table of values in the chart's README: defaults from values.yaml, meanings from values.schema.json.

``python tests/taskloom_operator/chart_table.py`` writes it into the README.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "taskloom"
BEGIN = "| value | default | meaning |\n|---|---|---|\n"
END = "\n\n"


def rows() -> Iterator[tuple[str, Any, str]]:
    """Each value: its name, its default, what it means."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    yield from _rows("", defaults, schema)


def _rows(name: str, value: Any, schema: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    if "properties" not in schema:
        yield name, value, schema["description"]
        return
    for key, one in schema["properties"].items():
        if name or key != "global":
            yield from _rows(f"{name}.{key}" if name else key, value[key], one)


def table() -> str:
    """All of them, as Markdown."""
    return (
        BEGIN + "\n".join(f"| `{name}` | `{json.dumps(value)}` | {meaning} |" for name, value, meaning in rows()) + END
    )


def main() -> None:
    """Write the table into the README."""
    path = CHART / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    path.write_text(before + table() + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
