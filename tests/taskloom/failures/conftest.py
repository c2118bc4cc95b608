"""What the tests of failures share: clusters that are there already, and waiting for something."""

from __future__ import annotations

import threading
import time

import psutil
import pytest

from taskloom.client import Client
from taskloom.deploy.local import LocalCluster


class Place:
    """A cluster of two workers of one thread each, and a client."""

    def __init__(self, **options):
        self.cluster = LocalCluster(**{"n_workers": 2, "threads_per_worker": 1, "wait": True, **options})
        self.clients = []
        self.client = self.another()

    def another(self):
        client = Client(self.cluster.address, token=self.cluster.token)
        self.clients.append(client)
        return client

    def pid(self, name):
        return self.cluster.worker_pids[name]

    @staticmethod
    def until(condition, seconds=30.0):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not come"
            threading.Event().wait(0.01)
        return found

    @staticmethod
    def lives(pid):
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def close(self):
        for client in self.clients:
            client.close()
        self.cluster.close()


@pytest.fixture
def make_place():
    """Makes places that are closed at the end of the test."""
    made = []

    def make(**options):
        made.append(Place(**options))
        return made[-1]

    yield make
    for place in made:
        place.close()


@pytest.fixture(scope="module")
def place():
    """One for all tests of a module."""
    found = Place()
    yield found
    found.close()
