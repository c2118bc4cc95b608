"""Conditions as they are written."""

from __future__ import annotations

from taskloom_operator.desired.conditions import Condition, conditions, is_true, of
from taskloom_operator.desired.times import stamp

NOW = 1_700_000_000.0


def resource(*told, generation=3):
    return {"metadata": {"generation": generation}, "status": {"conditions": list(told)}}


def test_what_has_not_changed_keeps_its_time():
    first = conditions({"metadata": {"generation": 1}}, [Condition("Ready", True, "A", "a")], NOW)
    assert first == [
        {
            "type": "Ready",
            "status": "True",
            "reason": "A",
            "message": "a",
            "lastTransitionTime": stamp(NOW),
            "observedGeneration": 1,
        }
    ]
    (same,) = conditions(resource(*first), [Condition("Ready", True, "B", "b")], NOW + 60)
    assert (same["lastTransitionTime"], same["reason"], same["observedGeneration"]) == (stamp(NOW), "B", 3)
    (other,) = conditions(resource(*first), [Condition("Ready", False, "B", "b")], NOW + 60)
    assert other["lastTransitionTime"] == stamp(NOW + 60)


def test_a_message_has_an_end():
    (told,) = conditions(resource(), [Condition("Ready", True, "A", "x" * 10_000)], NOW)
    assert len(told["message"]) == 2000
    assert told["message"].endswith("...")


def test_reading_them():
    found = resource({"type": "Ready", "status": "True"}, {"type": "Idle", "status": "Unknown"})
    assert is_true(found, "Ready")
    assert not is_true(found, "Idle")
    assert of(found, "Other") == of(None, "Ready") == of({"metadata": {}}, "Ready") == {}
