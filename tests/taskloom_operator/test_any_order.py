"""Whatever happens, in whatever order, with the operator killed between any two of its actions: in the end all is as the spec
says, and no value was lost that a scale-down, a roll or the operator could have lost."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from taskloom_operator import names
from taskloom_operator.actions import Create
from taskloom_operator.manifests import worker_hash

from .world import NS, Operator, World

EXAMPLES = int(os.environ.get("TASKLOOM_OPERATOR_EXAMPLES", "60"))
STALE = 2.0  # seconds that what an operator sees may be old

COUNTS = st.integers(0, 5)


class AnyOrder(RuleBasedStateMachine):
    @initialize(replicas=COUNTS)
    def begin(self, replicas):
        self.world = World(nodes=2, room=12)
        self.spec = {"workers": {"replicas": replicas}}
        self.most = replicas
        self.group = None
        self.world.cluster(**self.spec)
        self.operators = [Operator(self.world), Operator(self.world)]
        self.seen = [self.world.now, self.world.now]

    # --- the operators: one at work, and one that thinks so

    def fresh(self, which):
        self.operators[which].sync()
        self.seen[which] = self.world.now

    def pass_time(self, count=1):
        for _ in range(count):
            self.world.step()
            for which, seen in enumerate(self.seen):
                if self.world.now - seen > STALE:
                    self.fresh(which)

    @rule(which=st.sampled_from([0, 0, 0, 1]), count=st.integers(0, 12), between=st.booleans(), killed=st.booleans())
    def look(self, which, count, between, killed):
        """So many of the actions that follow; then it is killed, or left as it is."""
        steps = self.operators[which].steps()
        for _ in range(count):
            if next(steps, None) is None:
                break
            if between:
                self.world.step()
        steps.close()
        if killed:
            self.operators[which] = Operator(self.world)
            self.seen[which] = self.world.now

    @rule(which=st.sampled_from([0, 1]))
    def see(self, which):
        self.fresh(which)

    @rule(count=st.integers(1, 6))
    def wait(self, count):
        self.pass_time(count)

    @rule(count=st.integers(1, 10))
    def go_on(self, count):
        """The operator does its work for a while."""
        for _ in range(count):
            self.operators[0].run()
            self.seen[0] = self.world.now
            self.pass_time()

    # --- people

    def apply(self):
        workers = self.spec["workers"]
        self.most = max(self.most, workers.get("replicas", 0), workers.get("autoscale", {}).get("max", 0))
        self.world.cluster(**self.spec)

    @rule(replicas=COUNTS)
    def scale(self, replicas):
        self.spec["workers"].pop("autoscale", None)
        self.spec["workers"]["replicas"] = replicas
        self.apply()

    @rule(least=st.integers(0, 2), more=st.integers(1, 4), work=st.integers(0, 6))
    def autoscale(self, least, more, work):
        self.spec["workers"].pop("replicas", None)
        self.spec["workers"]["autoscale"] = {"min": least, "max": least + more, "idleSeconds": 3}
        self.world.work["demo"] = work
        self.apply()

    @rule(threads=st.integers(1, 3))
    def change(self, threads):
        self.spec["workers"]["threads"] = threads
        self.apply()

    @rule(suspend=st.sampled_from([True, False, False]))
    def suspend(self, suspend):
        if self.spec.get("suspend") and not suspend:
            self.world.lenient_until = self.world.now + STALE + 1
        self.spec["suspend"] = suspend
        self.apply()

    @rule(replicas=st.integers(0, 2))
    def add_group(self, replicas):
        self.group = {"replicas": replicas, "taskResources": {"large": 1}}
        self.world.group("large", **self.group)

    @rule(count=st.integers(1, 6))
    def compute(self, count):
        self.world.compute(count)

    @rule()
    def rotate(self):
        metadata = self.world.get("TaskCluster", "demo")["metadata"]
        metadata.setdefault("annotations", {})[names.ROTATE] = str(self.world.now)

    # --- accidents

    def some_pod(self, number):
        pods = self.world.pods()
        return pods[number % len(pods)] if pods else None

    @rule(number=st.integers(0, 9))
    def delete_a_pod(self, number):
        pod = self.some_pod(number)
        if pod is not None:
            self.world.delete_pod(pod["metadata"]["name"])

    @rule(number=st.integers(0, 9))
    def crash_a_worker(self, number):
        pod = self.some_pod(number)
        if pod is not None:
            self.world.crash(pod["metadata"]["uid"])

    @rule(node=st.sampled_from(["node1", "node2"]))
    def node_down(self, node):
        if all(down is None for down in self.world.nodes.values()):
            self.world.node_down(node)

    @rule(node=st.sampled_from(["node1", "node2"]))
    def node_up(self, node):
        if self.world.nodes[node] is not None:
            self.world.node_up(node)

    @rule()
    def scheduler_dies(self):
        for pod in self.world.pods("scheduler"):
            self.world.remove(("Pod", NS, pod["metadata"]["name"]), "deleted")

    @rule(reachable=st.booleans())
    def network(self, reachable):
        self.world.reachable = reachable

    @rule(quota=st.sampled_from([None, 3, 6]))
    def quota(self, quota):
        self.world.quota = quota

    # --- what holds always, and in the end

    @invariant()
    def nothing_is_lost(self):
        assert not self.world.failures

    @invariant()
    def no_pod_more_than_was_ever_asked_for(self):
        own = [p for p in self.world.pods() if p["metadata"]["labels"][names.GROUP_LABEL] == "default"]
        assert len(own) <= self.most + max(1, -(-self.most // 4))

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world, operator = self.world, self.operators[0]
        operator.settle()  # as far as it comes
        for node, down in world.nodes.items():
            if down is not None:
                world.node_up(node)
        world.reachable, world.quota = True, None
        # Nobody tells the operator that the scheduler can be reached again, or that there is room: it has to look.
        operator.settle()
        assert not world.failures
        world.forget()  # so that the last one can go, too
        operator.settle()
        self.converged(operator)

    def converged(self, operator):
        world, spec = self.world, self.spec
        cluster = world.get("TaskCluster", "demo")
        status = cluster["status"]
        assert status["observedGeneration"] == cluster["metadata"]["generation"]
        assert {k: cluster["spec"][k] for k in spec} == spec
        own = [p for p in world.pods() if p["metadata"]["labels"][names.GROUP_LABEL] == "default"]
        large = [p for p in world.pods() if p not in own]
        if spec.get("suspend"):
            assert status["phase"] == "Suspended"
            assert not world.pods("scheduler")
            assert not own
            assert not large
            return
        scale = spec["workers"].get("autoscale")
        wanted_large = self.group["replicas"] if self.group else 0
        if scale is None:
            wanted = spec["workers"]["replicas"]
        else:
            wanted = max(scale["min"], min(scale["max"], world.work.get("demo", 0) - wanted_large))
        assert len(own) == wanted
        assert len(large) == wanted_large
        assert len(world.ready()) == wanted + wanted_large
        for pods, workers in ((own, spec["workers"]), (large, self.group)):
            for pod in pods:
                assert pod["metadata"]["annotations"][names.SPEC_HASH] == worker_hash(spec, workers)
        assert status["phase"] == "Running"
        assert (status["replicas"], status["readyReplicas"], status["desiredReplicas"]) == (wanted, wanted, wanted)
        assert {one["type"]: one["status"] for one in status["conditions"]} == {
            "Ready": "True",
            "SchedulerReady": "True",
            "WorkersReady": "True",
            "Progressing": "False",
            "ScaleDownBlocked": "False",
            "Suspended": "False",
        }
        assert "draining" not in status
        # what has ended is not left lying about
        assert not [
            k for k, p in world.objects.items() if k[0] == "Pod" and p["status"]["phase"] in ("Succeeded", "Failed")
        ]
        # and nothing more is to be done
        operator.sync()
        plan = operator.plan()
        assert plan.actions == ()
        assert plan.status == ()


def test_any_order():
    options = settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(AnyOrder, settings=options)


def test_a_plan_is_whole_when_it_is_done_twice():
    """Looking twice without anything seen in between makes nothing twice."""
    world = World()
    world.cluster(workers={"replicas": 3})
    operator = Operator(world)
    operator.run()
    world.step()
    operator.run()
    assert not [action for action in operator.steps() if isinstance(action, Create)]
    assert len(world.pods()) == 3
