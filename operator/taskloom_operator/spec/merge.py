"""A strategic merge of what users write over what we make: of pod templates, with fields that we have never heard of too.

As ``kubectl patch`` with its default type does it: objects are merged by field, null removes; lists whose items have a name
are merged by it (see "patch merge key" in the API's reference); of other lists, the user's takes the place of ours. ``$patch: delete`` in an
item removes the one of that name, ``$patch: replace`` in an object replaces all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["merge"]

# field -> what its items are known by
_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
}
_DEFAULTS = {"protocol": "TCP"}
_APPENDED = frozenset({"tolerations", "envFrom"})  # ours stay, the user's come behind


def merge(ours: Any, theirs: Any) -> Any:
    """What comes of it; neither is changed.

    >>> merge({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}, "a": None})
    {'b': {'c': 2, 'd': 3}}
    >>> merge({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]})
    {'env': [{'name': 'A', 'value': '2'}, {'name': 'B', 'value': '3'}]}
    """
    return _merged("", ours, theirs)


def _merged(field: str, ours: Any, theirs: Any) -> Any:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        if theirs.get("$patch") == "replace":
            return {key: value for key, value in theirs.items() if key != "$patch"}
        found = dict(ours)
        for key, value in theirs.items():
            if key.startswith("$"):
                continue
            if value is None:
                found.pop(key, None)
            else:
                found[key] = _merged(key, found.get(key), value)
        return found
    if isinstance(theirs, Mapping):
        return {key: _merged(key, None, value) for key, value in theirs.items() if value is not None and key[:1] != "$"}
    if isinstance(theirs, list):
        return _lists(field, ours if isinstance(ours, list) else [], theirs)
    return theirs


def _lists(field: str, ours: list[Any], theirs: list[Any]) -> list[Any]:
    if field in _APPENDED:
        return ours + [item for item in theirs if item not in ours]
    keys = _KEYS.get(field)
    if keys is None or not all(isinstance(item, Mapping) for item in [*ours, *theirs]):
        return [_merged("", None, item) for item in theirs]
    found: dict[Any, Any] = {_name(item, keys): item for item in ours}
    for item in theirs:
        name = _name(item, keys)
        if item.get("$patch") == "delete":
            found.pop(name, None)
        elif field == "env" and name in found and ("value" in item or "valueFrom" in item):
            found[name] = dict(item)  # a value and where it comes from exclude each other
        else:
            found[name] = _merged("", found.get(name), item)
    return list(found.values())


def _name(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple([item.get(key, _DEFAULTS.get(key)) for key in keys])
