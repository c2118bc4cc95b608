"""A cluster's life: what is made, what is told, when nothing is to run, and what belongs to others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taskloom_operator import names
from taskloom_operator.actions import Ask, Delete, MakeSecret, Note, Patch, Plan, RotateToken
from taskloom_operator.desired import reconcile
from taskloom_operator.observe import Observed, SchedulerView, Settings

from ..world import NS, Operator, World


def kinds(actions):
    return [type(action).__name__ for action in actions if not isinstance(action, Note)]


@pytest.fixture
def world():
    return World()


@pytest.fixture
def operator(world):
    return Operator(world)


def running(world, operator, replicas=2, **spec):
    workers = {"replicas": replicas, **spec.pop("workers", {})}
    world.cluster(workers=workers, **spec)
    for _ in range(8):
        operator.run()
        world.step()
    assert len(world.ready()) == replicas
    world.calls.clear()
    world.events.clear()


# --- made


def test_the_secret_is_made_first_and_workers_do_not_wait_until_the_scheduler_runs(world, operator):
    world.cluster(workers={"replicas": 3})
    made = [
        (type(action).__name__, action.manifest["kind"]) for action in operator.run() if hasattr(action, "manifest")
    ]
    assert made == [
        ("MakeSecret", "Secret"),
        ("Apply", "Service"),
        ("Apply", "NetworkPolicy"),
        ("Apply", "Deployment"),
    ]
    world.step()
    (pod,) = world.pods("scheduler")
    assert pod.get("status", {}).get("phase") != "Running"
    assert kinds(operator.run())[:3] == ["Create"] * 3


def test_workers_leave_the_scheduler_what_it_needs_of_a_quota(world, operator):
    world.quota = 2
    world.cluster(workers={"replicas": 5})
    for _ in range(10):
        operator.run()
        world.step()
    assert (len(world.pods("scheduler")), len(world.ready())) == (1, 1)


def test_one_call_a_pod_and_when_all_is_there_none(world, operator):
    world.cluster(workers={"replicas": 100})
    operator.settle()
    assert len(world.ready()) == 100
    assert sum(call.startswith("Create Pod") for call in world.calls) == 100
    assert len(world.calls) < 115
    world.calls.clear()
    for _ in range(20):
        assert operator.run() == []
        world.step(length=30.0)
    assert world.calls == []


def test_no_pod_more_than_asked_though_nothing_is_seen_of_them(world, operator):
    world.cluster(workers={"replicas": 5})
    operator.run()
    world.step()
    operator.sync()
    for _ in range(4):
        list(operator.steps())  # the cache stays as it was
        world.step()
    assert len(world.pods()) == 5


def test_two_operators_at_the_same_time_make_the_same_pods(world):
    world.cluster(workers={"replicas": 4})
    Operator(world).run()
    world.step()
    first, second = Operator(world), Operator(world)
    one, other = first.steps(), second.steps()
    for _ in range(20):
        next(one, None)
        next(other, None)
    assert len(world.pods()) == 4


def test_all_belongs_to_the_cluster_and_goes_with_it(world, operator):
    running(world, operator)
    world.remove(("TaskCluster", NS, "demo"), "deleted")
    for _ in range(10):
        operator.run()
        world.step()
    assert world.objects == {}
    assert world.calls == []  # by Kubernetes alone


def test_one_that_is_being_deleted_is_let_go(world, operator):
    running(world, operator)
    world.get("TaskCluster", "demo")["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    world.cluster(workers={"replicas": 9})
    operator.sync()
    assert operator.plan() == Plan()


def test_two_of_one_name_in_two_namespaces(world, operator):
    for space, replicas in ((NS, 2), ("other", 3)):
        world.cluster(namespace=space, workers={"replicas": replicas})
    for _ in range(12):
        operator.run()
        operator.run(namespace="other")
        world.step()
    assert len(world.ready()) == 2
    assert len(world.ready(namespace="other")) == 3
    world.cluster(workers={"replicas": 0})
    for _ in range(12):
        operator.run()
        operator.run(namespace="other")
        world.step()
    assert (len(world.pods()), len(world.pods(namespace="other"))) == (0, 3)


# --- told


def test_the_status_says_what_is_so(world, operator):
    world.cluster(workers={"replicas": 2})
    operator.run()
    status = world.get("TaskCluster", "demo")["status"]
    assert status["phase"] == "Pending"
    assert status["address"] == "tls://demo-scheduler.lab.svc:8786"
    assert status["selector"] == "taskloom.dev/cluster=demo,taskloom.dev/component=worker,taskloom.dev/group=default"
    assert (status["replicas"], status["readyReplicas"], status["desiredReplicas"]) == (0, 0, 2)
    assert world.condition("TaskCluster", "demo", "Ready")["reason"] == "Starting"
    operator.settle()
    status = world.get("TaskCluster", "demo")["status"]
    assert (status["phase"], status["readyReplicas"], status["observedGeneration"]) == ("Running", 2, 1)
    told = {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}
    assert told == {
        "Ready": ("True", "Running"),
        "SchedulerReady": ("True", "Running"),
        "WorkersReady": ("True", "AllReady"),
        "Progressing": ("False", "Settled"),
        "ScaleDownBlocked": ("False", "NothingToDo"),
        "Suspended": ("False", "NotSuspended"),
    }


def test_since_when_something_is_so_stays_while_it_is_so(world, operator):
    running(world, operator)
    before = world.condition("TaskCluster", "demo", "SchedulerReady")
    world.step(30)
    world.cluster(workers={"replicas": 3})
    operator.settle()
    after = world.condition("TaskCluster", "demo", "SchedulerReady")
    assert after["lastTransitionTime"] == before["lastTransitionTime"]
    assert after["observedGeneration"] == 2


def test_an_image_that_cannot_be_had_is_told_and_the_status_stays_still(world, operator):
    world.missing_images.add("nothing:none")
    world.cluster(image="nothing:none", workers={"replicas": 2})
    for _ in range(10):
        operator.run()
        world.step()
    told = world.condition("TaskCluster", "demo", "WorkersReady")
    assert told["reason"] == "ImagePullError"
    assert "2 workers: the image nothing:none cannot be had" in told["message"]
    assert "nothing:none" in world.condition("TaskCluster", "demo", "SchedulerReady")["message"]
    assert any(note.type == "Warning" and note.reason == "ImagePullError" for note in world.events)


def test_a_crash_loop_is_told_in_the_containers_own_words_and_once(world, operator):
    world.broken.add("taskloom:1")
    world.cluster(workers={"replicas": 2})
    for _ in range(6):
        operator.run()
        world.step()
    told = world.condition("TaskCluster", "demo", "WorkersReady")
    assert told["reason"] == "CrashLoop"
    assert (
        "2 workers: the container worker ends again and again: exit code 2: nthreads: 'many' is no number"
        in told["message"]
    )
    world.calls.clear()
    for _ in range(6):
        operator.run()
        world.step()
    assert world.calls == []  # that the kubelet counts seconds is no news


def test_no_room_on_any_node_is_told(operator, world):
    world.room = 2
    world.cluster(workers={"replicas": 4})
    for _ in range(6):
        operator.run()
        world.step()
    told = world.condition("TaskCluster", "demo", "WorkersReady")
    assert told["reason"] == "Unschedulable"
    assert "Insufficient cpu" in told["message"]


def test_a_quota_that_is_used_up_is_told_tried_again_ever_less_often_and_filled_when_there_is_room(world, operator):
    world.quota = 3
    world.cluster(workers={"replicas": 5})
    for _ in range(100):
        operator.run()
        world.step()
    assert len(world.pods()) == 2
    told = world.condition("TaskCluster", "demo", "WorkersReady")
    assert told["reason"] == "QuotaExceeded"
    assert told["message"] == "2 of 5 workers are ready; no more pods can be made: exceeded quota: few, limited: pods=3"
    assert sum(call.startswith("Create Pod") for call in world.calls) < 15
    world.quota = None
    for _ in range(40):
        operator.run()
        world.step()
    assert len(world.ready()) == 5


# --- the token


def test_the_secret_is_made_for_all_names_of_the_scheduler(world, operator):
    world.cluster()
    operator.sync()
    (made,) = [action for action in operator.plan().actions if isinstance(action, MakeSecret)]
    assert made.manifest["metadata"]["name"] == "demo-token"
    assert "data" not in made.manifest
    assert made.hosts == (
        "demo-scheduler",
        "demo-scheduler.lab",
        "demo-scheduler.lab.svc",
        "demo-scheduler.lab.svc.cluster.local",
        "localhost",
    )


def test_a_new_value_of_the_annotation_is_a_new_token_once_and_nothing_is_started_again(world, operator):
    running(world, operator)
    before = {pod["metadata"]["uid"] for pod in world.pods() + world.pods("scheduler")}
    for value in ("a", "b"):
        world.get("TaskCluster", "demo")["metadata"].setdefault("annotations", {})[names.ROTATE] = value
        assert [action for action in operator.run() if isinstance(action, RotateToken)] == [
            RotateToken(NS, "demo-token", world.get("Secret", "demo-token")["metadata"]["uid"], value)
        ]
        assert not [action for action in operator.run() if isinstance(action, RotateToken)]
    operator.settle()
    assert {pod["metadata"]["uid"] for pod in world.pods() + world.pods("scheduler")} == before


def test_a_first_token_is_not_changed_at_once(world, operator):
    world.cluster()
    world.get("TaskCluster", "demo")["metadata"]["annotations"] = {names.ROTATE: "a"}
    done = [action for _ in range(3) for action in operator.run()]
    assert not [action for action in done if isinstance(action, RotateToken)]


# --- nothing is to run


def test_suspended_and_resumed(world, operator):
    running(world, operator)
    world.compute(3)
    world.cluster(workers={"replicas": 2}, suspend=True)
    operator.settle()
    assert world.pods() == []
    assert world.pods("scheduler") == []
    assert world.get("Deployment", "demo-scheduler")["spec"]["replicas"] == 0
    assert world.get("TaskCluster", "demo")["status"]["phase"] == "Suspended"
    told = world.condition("TaskCluster", "demo", "Suspended")
    assert told["status"] == "True"
    assert "lost" in told["message"]
    assert world.failures == []
    world.cluster(workers={"replicas": 2}, suspend=False)
    operator.settle()
    assert len(world.ready()) == 2
    assert world.condition("TaskCluster", "demo", "Ready")["status"] == "True"
    assert world.condition("TaskCluster", "demo", "Suspended")["status"] == "False"


def test_made_suspended_there_is_no_pod(world, operator):
    world.cluster(workers={"replicas": 2}, suspend=True)
    operator.settle()
    assert not [key for key in world.objects if key[0] == "Pod"]


def test_finished_after_being_idle_and_deleted_after_that(world, operator):
    running(world, operator, idleTimeout=60, ttlSecondsAfterFinished=100)
    for _ in range(40):
        operator.run()
        world.step()
    assert world.condition("TaskCluster", "demo", "Idle")["status"] == "True"
    assert len(world.ready()) == 2
    for _ in range(40):
        operator.run()
        world.step()
    status = world.get("TaskCluster", "demo")["status"]
    assert status["phase"] == "Finished"
    assert status["finishedAt"]
    assert world.pods() == []
    assert world.pods("scheduler") == []
    world.step(100)
    operator.run()
    world.step(5)
    assert world.objects == {}


def test_a_cluster_to_which_nobody_has_ever_come_is_finished_too(world, operator):
    running(world, operator, replicas=0, idleTimeout=20)
    for _ in range(40):
        operator.run()
        world.step()
    assert world.get("TaskCluster", "demo")["status"]["phase"] == "Finished"


@pytest.mark.parametrize("what", ["client", "task", "short visit", "away"])
def test_who_is_used_is_not_finished(world, operator, what):
    running(world, operator, idleTimeout=60)
    for second in range(100):
        if what == "client":
            world.clients["demo"] = 1
        elif what == "task":
            world.work["demo"] = 1
        elif what == "short visit" and second == 50:  # between two looks; workers remember
            for process in world.processes.values():
                process.idle_since = world.now
        elif what == "away":
            world.reachable = False
        operator.run()
        world.step()
    assert world.get("TaskCluster", "demo")["status"]["phase"] == "Running"
    assert len(world.ready()) == 2


def test_that_it_is_finished_is_written_before_anything_is_taken_away(world, operator):
    running(world, operator, idleTimeout=10)
    for _ in range(40):
        actions = operator.run()
        if "finishedAt" in world.get("TaskCluster", "demo")["status"]:
            assert kinds(actions) == ["WriteStatus"]
            break
        world.step()
    else:
        raise AssertionError("it was not finished")
    assert kinds(operator.run())[:3] == ["Patch", "Delete", "Delete"]


# --- the scheduler


def test_another_image_of_the_scheduler_is_a_new_template_and_workers_are_rolled(world, operator):
    running(world, operator)
    before = {pod["metadata"]["uid"] for pod in world.pods() + world.pods("scheduler")}
    world.cluster(workers={"replicas": 2}, image="mine:2")
    operator.settle()
    after = world.pods() + world.pods("scheduler")
    assert {pod["spec"]["containers"][0]["image"] for pod in after} == {"mine:2"}
    assert not before & {pod["metadata"]["uid"] for pod in after}
    assert world.get("Deployment", "demo-scheduler")["spec"]["strategy"] == {"type": "Recreate"}


def test_a_newer_operator_with_another_default_image_rolls_nobody_and_new_workers_fit_the_old_ones(world, operator):
    running(world, operator)
    before = {pod["metadata"]["uid"] for pod in world.pods() + world.pods("scheduler")}
    world.settings = Settings("taskloom:2")
    operator = Operator(world)
    operator.settle()
    assert {pod["metadata"]["uid"] for pod in world.pods() + world.pods("scheduler")} == before
    world.cluster(workers={"replicas": 3})
    operator.settle()
    assert {pod["spec"]["containers"][0]["image"] for pod in world.pods()} == {"taskloom:1"}
    # and one that is made now gets the new one
    world.cluster("new", workers={"replicas": 1})
    operator.settle("new")
    assert {pod["spec"]["containers"][0]["image"] for pod in world.pods(cluster="new")} == {"taskloom:2"}


def test_a_default_image_that_cannot_be_had_is_put_right_by_whoever_runs_the_operator(world, operator):
    world.missing_images.add("taskloom:1")
    world.cluster(workers={"replicas": 2})
    for _ in range(6):
        operator.run()
        world.step()
    world.settings = Settings("taskloom:2")
    operator = Operator(world)
    operator.settle()
    assert len(world.ready()) == 2
    assert {p["spec"]["containers"][0]["image"] for p in world.pods() + world.pods("scheduler")} == {"taskloom:2"}


def test_an_image_that_the_spec_names_no_more_gives_way_to_the_default(world, operator):
    running(world, operator, image="mine:1")
    world.cluster(workers={"replicas": 2})
    operator.settle()
    after = world.pods() + world.pods("scheduler")
    assert {pod["spec"]["containers"][0]["image"] for pod in after} == {"taskloom:1"}


def test_what_somebody_has_changed_in_the_service_is_put_right(world, operator):
    running(world, operator)
    world.get("Service", "demo-scheduler")["spec"]["ports"][0]["port"] = 1
    assert kinds(operator.run()) == ["Apply"]
    assert operator.run() == []
    world.cluster(workers={"replicas": 2}, scheduler={"serviceType": "LoadBalancer"})
    operator.settle()
    assert world.get("Service", "demo-scheduler")["spec"]["type"] == "LoadBalancer"


def test_what_the_api_server_adds_is_no_reason_to_apply_again(world, operator):
    running(world, operator)
    service, policy = world.get("Service", "demo-scheduler"), world.get("NetworkPolicy", "demo")
    service["spec"].update(clusterIP="10.0.0.1", sessionAffinity="None")
    service["spec"]["ports"][0]["nodePort"] = 30000
    policy["metadata"]["managedFields"] = [{}]
    assert operator.run() == []


def test_without_a_network_policy_where_that_is_wished(world, operator):
    running(world, operator)
    world.settings = replace(world.settings, network_policy=False)
    operator.run()
    assert world.get("NetworkPolicy", "demo") is None
    assert operator.run() == []


# --- names that others have


def test_what_an_earlier_cluster_has_left_is_waited_for(world, operator):
    running(world, operator)
    left = dict(world.objects)
    world.remove(("TaskCluster", NS, "demo"), "deleted")
    world.cluster(workers={"replicas": 1})
    assert world.get("Deployment", "demo-scheduler") is left["Deployment", NS, "demo-scheduler"]
    actions = operator.run()
    assert kinds(actions) == ["WriteStatus"]
    told = world.condition("TaskCluster", "demo", "Ready")
    assert told["reason"] == "NameTaken"
    assert "earlier TaskCluster demo" in told["message"]
    operator.settle()
    assert len(world.ready()) == 1


def test_what_somebody_else_has_made_is_not_touched(world, operator):
    mine = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "demo-scheduler", "namespace": NS}, "spec": {}}
    world.put(mine)
    world.cluster(workers={"replicas": 1})
    operator.run()
    assert world.get("Service", "demo-scheduler")["spec"] == {}
    assert "demo-scheduler" in world.condition("TaskCluster", "demo", "Ready")["message"]
    assert world.pods() == []


def test_a_token_that_somebody_has_brought_is_used(world, operator):
    world.put({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-token", "namespace": NS}})
    world.cluster(workers={"replicas": 1})
    operator.settle()
    assert len(world.ready()) == 1


def test_the_plan_asks_before_it_does_anything():
    """What a plan needs to know it names, and does nothing before it is known."""
    world = World()
    operator = Operator(world)
    running(world, operator, replicas=3)
    world.cluster(workers={"replicas": 1})
    operator.sync()
    observed = operator.observed()
    plan = reconcile(observed, world.now)
    assert plan == Plan(ask=Ask.WORKERS | Ask.RETIREMENTS)
    half = reconcile(replace(observed, scheduler=world.ask("demo", NS, Ask.WORKERS)), world.now)
    assert half == plan
    whole = reconcile(replace(observed, scheduler=world.ask("demo", NS, plan.ask)), world.now)
    assert whole.actions
    nobody = reconcile(replace(observed, scheduler=SchedulerView(False, "no route to host")), world.now)
    assert not [action for action in nobody.actions if isinstance(action, Delete)]


def test_who_neither_scales_nor_drains_is_not_asked(world, operator):
    running(world, operator)
    operator.sync()
    assert reconcile(operator.observed(), world.now).ask == Ask.NOTHING


def test_groups_whose_cluster_is_not_there_say_so(world, operator):
    world.group("large", replicas=2)
    operator.run()
    assert "no TaskCluster demo" in world.condition("TaskWorkerGroup", "large", "Ready")["message"]
    assert world.pods() == []
    assert reconcile(Observed(NS, "nothing", world.settings), world.now) == Plan()


def test_a_group_gets_the_cluster_as_an_owner_and_its_spec_is_left_alone(world, operator):
    world.cluster(workers={"replicas": 1})
    world.group("large", replicas=2)
    spec = dict(world.get("TaskWorkerGroup", "large")["spec"])
    patches = [action for action in operator.run() if isinstance(action, Patch)]
    assert [sorted(patch.patch) for patch in patches] == [["metadata"]]
    (owner,) = world.get("TaskWorkerGroup", "large")["metadata"]["ownerReferences"]
    assert owner["controller"] is False
    assert world.get("TaskWorkerGroup", "large")["spec"] == spec
    operator.settle()
    assert len(world.ready()) == 3
    world.remove(("TaskCluster", NS, "demo"), "deleted")
    world.step(6)
    assert world.objects == {}


def test_a_spec_that_cannot_be_meant_so_is_told_and_what_runs_is_left_alone(world, operator):
    running(world, operator)
    world.cluster(workers={"replicas": 2, "memoryLimit": "lots"})
    assert kinds(operator.run()) == ["WriteStatus"]
    assert world.get("TaskCluster", "demo")["status"]["phase"] == "Failed"
    assert "spec.workers.memoryLimit" in world.condition("TaskCluster", "demo", "Ready")["message"]
    assert operator.run() == []
    assert len(world.ready()) == 2
    world.cluster(workers={"replicas": 3})
    operator.settle()
    assert len(world.ready()) == 3
    assert world.get("TaskCluster", "demo")["status"]["phase"] == "Running"


def test_a_group_that_cannot_be_meant_so_holds_up_nobody_else(world, operator):
    world.cluster(workers={"replicas": 2})
    world.group("wrong", replicas=1, autoscale={"min": 0, "max": 1})
    world.group("large", replicas=1)
    operator.settle()
    assert len(world.ready()) == 3
    told = world.condition("TaskWorkerGroup", "wrong", "Ready")
    assert (told["status"], told["reason"]) == ("False", "InvalidSpec")
    assert "exclude each other" in told["message"]
    assert operator.run() == []
