"""Serialization, one for all backends: functions by value and by hash, pickle 5 out of band, errors with tracebacks."""

from taskloom.serialize.errors import dump_error, load_error
from taskloom.serialize.objects import FunctionStore, FunctionTable, Packer, dumps, dumps_whole, loads

__all__ = ["FunctionStore", "FunctionTable", "Packer", "dump_error", "dumps", "dumps_whole", "load_error", "loads"]
