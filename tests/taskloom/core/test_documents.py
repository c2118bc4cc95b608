"""docs/machines.md says what the code does. ``python tests/taskloom/core/test_documents.py`` writes its table."""

from __future__ import annotations

from pathlib import Path

from taskloom.core.scheduler.machine import TRANSITIONS, Scheduler
from taskloom.core.scheduler.placing import Placing
from taskloom.core.scheduler.state import NAMES

DOCUMENT = Path(__file__).parents[3] / "docs" / "machines.md"
BEGIN = "<!-- transitions: made from the code by tests/taskloom/core/test_documents.py -->"
END = "<!-- end of transitions -->"


def table():
    rows = [f"| {NAMES[old]} | {NAMES[new]} | {how} |" for (old, new), how in TRANSITIONS.items()]
    return "\n".join(["| from | to | by |", "| --- | --- | --- |", *rows])


def test_the_table_of_transitions():
    text = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]
    assert text.strip() == table(), "run: python tests/taskloom/core/test_documents.py"


def test_the_methods_that_it_names_are_there():
    names = {word for how in TRANSITIONS.values() for word in how.split("`")[1::2]}
    for name in names:
        owner = Placing if name.startswith("Placing.") else Scheduler
        assert callable(getattr(owner, name.removeprefix("Placing.")))


def test_every_state_can_be_left_and_reached():
    states = set(range(len(NAMES)))
    assert {old for old, _ in TRANSITIONS} == states - {NAMES.index("free")}
    assert {new for _, new in TRANSITIONS} == states


if __name__ == "__main__":
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}")
