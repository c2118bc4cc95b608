"""A strategic merge of what users write over what we make: of pod templates, with fields that we have never heard of too.

As ``kubectl patch`` does it by default, see "strategic merge patch" and "patch merge key" in Kubernetes' documentation:

- Objects are merged field by field; null takes a field away.
- Lists whose items have a key are merged by it: containers by name, mounts by path, and so on. Ours come first, in our order.
- Of all other lists, the user's takes the place of ours.
- ``$patch: delete`` in an item takes the one of that key away; in an object, the object. ``$patch: replace`` in an object puts it
  in the place of ours; in an item of a list, the rest of the list in the place of ours.
- ``$retainKeys`` names the fields of an object that stay.

Where the API would refuse what comes of this, it is more than that, so that users need not know what ours looks like:

- Of fields that exclude each other (the handlers of a probe, the sources of a volume, a variable's value and where it comes from)
  ours goes where the user has another one.
- Tolerations and ``envFrom`` are added to ours.

It takes whatever JSON is given: what is no pod template the API server refuses afterwards, in words of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["merge"]

# field -> what its items are known by
_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "ports": ("containerPort", "protocol"),
    "resizePolicy": ("resourceName",),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
_DEFAULTS = {"protocol": "TCP"}
_ADDED = frozenset({"envFrom", "tolerations"})

_HANDLERS = frozenset({"exec", "grpc", "httpGet", "sleep", "tcpSocket"})
# field -> the fields of its value, or of an item of it, of which there can be one
_EXCLUSIVE: dict[str, frozenset[str]] = {
    "env": frozenset({"value", "valueFrom"}),
    "livenessProbe": _HANDLERS,
    "readinessProbe": _HANDLERS,
    "startupProbe": _HANDLERS,
    "postStart": _HANDLERS,
    "preStop": _HANDLERS,
}

_Gone: Any = object()


def merge(ours: Any, theirs: Any) -> Any:
    """What comes of it; neither is changed.

    Args:
        ours: what we make: a pod template, or any part of one.
        theirs: what the user wrote.

    >>> merge({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}, "a": None})
    {'b': {'c': 2, 'd': 3}}
    >>> ours = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}
    >>> merge(ours, {"env": [{"name": "A", "$patch": "delete"}, {"name": "B", "value": "3"}]})
    {'env': [{'name': 'B', 'value': '3'}]}
    """
    found = _merged("", ours, theirs)
    return {} if found is _Gone else found


def _merged(field: str, ours: Any, theirs: Any) -> Any:
    """``_Gone`` where nothing is left of it."""
    if isinstance(theirs, Mapping):
        return _objects(field, ours if isinstance(ours, Mapping) else {}, theirs)
    if isinstance(theirs, list):
        return _lists(field, ours if isinstance(ours, list) else [], theirs)
    return _Gone if theirs is None else theirs


def _objects(field: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Any:
    directive = theirs.get("$patch")
    if directive == "delete":
        return _Gone
    found = {} if directive == "replace" else dict(ours)
    retained = theirs.get("$retainKeys")
    if isinstance(retained, list):
        found = {name: value for name, value in found.items() if name in retained}
    for name in _excluded(field, found, theirs):
        del found[name]
    for name, value in theirs.items():
        if name.startswith("$"):  # $setElementOrder is of no use to anybody here
            continue
        merged = _merged(name, found.get(name), value)
        if merged is _Gone:
            found.pop(name, None)
        else:
            found[name] = merged
    return found


def _excluded(field: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[str]:
    """The fields of ours that cannot stand beside what the user has."""
    alternatives = _EXCLUSIVE.get(field)
    if field == "volumes":  # all but the name is a source, also one that is not known here
        alternatives = frozenset(ours).union(theirs) - {"name"}
    if not alternatives:
        return ()
    chosen = {name for name in alternatives if theirs.get(name) is not None and not name.startswith("$")}
    return [name for name in ours if name in alternatives and name not in chosen] if chosen else ()


def _lists(field: str, ours: list[Any], theirs: list[Any]) -> list[Any]:
    if any(isinstance(item, Mapping) and item.get("$patch") == "replace" for item in theirs):
        theirs = [item for item in theirs if not (isinstance(item, Mapping) and item.get("$patch") == "replace")]
        ours = []
    if field in _ADDED:
        return [*ours, *(item for item in _whole(theirs) if item not in ours)]
    keys = _KEYS.get(field)
    if keys is None:
        return _whole(theirs)
    found: dict[Any, Any] = {}
    for item in ours:
        found[_key(item, keys)] = item
    for item in theirs:
        key = _key(item, keys)
        merged = _merged(field, found.get(key), item)
        if merged is _Gone:
            found.pop(key, None)
        else:
            found[key] = merged
    return list(found.values())


def _whole(items: list[Any]) -> list[Any]:
    """A list that takes the place of another, without what was meant for us in it."""
    merged = [item if item is None else _merged("", None, item) for item in items]
    return [item for item in merged if item is not _Gone]


def _key(item: Any, keys: tuple[str, ...]) -> Any:
    """What an item is known by; one that has no key is like no other."""
    if isinstance(item, Mapping):
        values = tuple([item.get(key, _DEFAULTS.get(key)) for key in keys])
        if all(isinstance(value, (str, int)) for value in values):
            return values
    return object()
