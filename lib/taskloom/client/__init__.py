"""The client of a cluster: graphs and functions go there, values come back."""

from taskloom.client.client import Client
from taskloom.client.future import Future
from taskloom.client.waiting import as_completed, wait

__all__ = ["Client", "Future", "as_completed", "wait"]
