"""Workers come and go: scaled, drained, rolled, replaced; and nothing is lost."""

from __future__ import annotations

import pytest

from taskloom_operator import names
from taskloom_operator.actions import Create, Delete, Note, Retire, Stay
from taskloom_operator.desired.times import stamp
from taskloom_operator.manifests import naming

from ..world import EVICTED, NS, Operator, World


@pytest.fixture
def world():
    return World()


@pytest.fixture
def operator(world):
    return Operator(world)


def go(world, operator, steps=1):
    """So many seconds; what was done in them."""
    done = []
    for _ in range(steps):
        done += [action for action in operator.run() if not isinstance(action, Note)]
        world.step()
    return done


def running(world, operator, replicas=2, **workers):
    world.cluster(workers={"replicas": replicas, **workers})
    go(world, operator, 8)
    assert len(world.ready()) == replicas
    world.calls.clear()


def of(kind, done):
    return [action for action in done if isinstance(action, kind)]


def uids(pods):
    return {pod["metadata"]["uid"] for pod in pods}


# --- more


def test_scaled_up_by_one_call_a_pod(world, operator):
    running(world, operator, 2)
    world.cluster(workers={"replicas": 5})
    assert len(of(Create, go(world, operator, 8))) == 3
    assert len(world.ready()) == 5
    assert [call for call in world.calls if "Status" not in call] == [
        f"Create Pod {pod['metadata']['name']}" for pod in world.pods()[2:]
    ]


def test_names_are_not_used_again_while_their_pods_are_known(world, operator):
    running(world, operator, 3)
    seen = {pod["metadata"]["name"] for pod in world.pods()}
    world.delete_pod(sorted(seen)[0])
    go(world, operator, 8)
    assert len({pod["metadata"]["name"] for pod in world.pods()} - seen) == 1


# --- fewer


def test_scaled_down_values_move_first_and_the_pod_goes_when_its_worker_has_left(world, operator):
    running(world, operator, 3)
    world.compute(9)
    world.cluster(workers={"replicas": 1})
    (retire,) = of(Retire, go(world, operator))
    assert len(retire.uids) == 2
    draining = world.get("TaskCluster", "demo")["status"]["draining"]
    assert {one["uid"] for one in draining} == set(retire.uids)
    done = go(world, operator, 10)
    assert {action.uid for action in of(Delete, done)} == set(retire.uids)
    assert not of(Retire, done)  # once is enough
    assert len(world.ready()) == 1
    assert len(world.values) == 9
    assert world.failures == []
    assert "draining" not in world.get("TaskCluster", "demo")["status"]


def test_those_go_that_hold_least_and_have_nothing_to_do(world, operator):
    running(world, operator, 3)
    world.compute(7)
    full, busy, idle = world.registered(("TaskCluster", NS, "demo"))
    full.values, busy.values, idle.values = set(range(1, 5)), {5}, set()
    world.values = set(range(1, 6))
    busy.idle_since = None
    world.cluster(workers={"replicas": 2})
    (retire,) = of(Retire, go(world, operator))
    assert retire.uids == (idle.uid,)
    world.cluster(workers={"replicas": 1})
    go(world, operator, 6)
    assert uids(world.pods()) == {busy.uid}  # who works goes last
    assert world.failures == []


def test_pods_that_never_registered_go_first_and_at_once(world, operator):
    world.room = 2
    running(world, operator, 2)
    world.cluster(workers={"replicas": 4})  # of which one finds no room
    go(world, operator, 8)
    held = uids(world.ready())
    world.compute(6)
    world.cluster(workers={"replicas": 3})
    done = go(world, operator, 3)
    assert not of(Retire, done)
    assert len(of(Delete, done)) == 1
    assert uids(world.ready()) == held


@pytest.mark.parametrize("how", ["no scheduler", "no way to it"])
def test_while_nobody_can_be_asked_nothing_that_may_hold_values_is_deleted(world, operator, how):
    running(world, operator, 3)
    world.compute(6)
    if how == "no scheduler":
        world.missing_images.add("taskloom:1")
        for pod in world.pods("scheduler"):
            world.delete_pod(pod["metadata"]["name"])
        world.step(3)
    else:
        world.reachable = False
    world.cluster(workers={"replicas": 1})
    assert not of(Delete, go(world, operator, 60))
    assert len(world.pods()) == 3
    told = world.condition("TaskCluster", "demo", "ScaleDownBlocked")
    assert (told["status"], told["reason"]) == ("True", "SchedulerUnavailable")
    assert "2 workers are to go" in told["message"]
    assert ("it is not running" if how == "no scheduler" else "connection refused") in told["message"]
    assert "kubectl annotate taskcluster demo taskloom.dev/force-scale-down=true" in told["message"]
    world.missing_images.clear()
    world.reachable = True
    go(world, operator, 80)
    assert len(world.pods()) == 1
    assert world.failures == []
    assert world.condition("TaskCluster", "demo", "ScaleDownBlocked")["status"] == "False"


def test_pods_that_do_not_run_may_go_though_nobody_can_be_asked(world, operator):
    world.missing_images.add("taskloom:1")
    world.cluster(workers={"replicas": 3})
    go(world, operator, 5)
    world.cluster(workers={"replicas": 1})
    go(world, operator, 5)
    assert len(world.pods()) == 1


def test_by_force_they_go_all_the_same(world, operator):
    running(world, operator, 3)
    world.reachable = False
    world.compute(3)
    world.cluster(workers={"replicas": 1})
    world.get("TaskCluster", "demo")["metadata"]["annotations"] = {names.FORCE: "true"}
    go(world, operator, 5)
    assert len(world.pods()) == 1


def test_by_force_values_move_where_they_can(world, operator):
    running(world, operator, 3)
    world.compute(6)
    world.cluster(workers={"replicas": 1})
    world.get("TaskCluster", "demo")["metadata"]["annotations"] = {names.FORCE: "true"}
    go(world, operator, 12)
    assert len(world.pods()) == 1
    assert len(world.values) == 6


def test_the_last_one_stays_with_values_that_somebody_needs_and_it_is_told(world, operator):
    running(world, operator, 2)
    world.compute(4)
    world.cluster(workers={"replicas": 0})
    go(world, operator, 30)
    assert len(world.values) == 4
    told = world.condition("TaskCluster", "demo", "ScaleDownBlocked")
    assert (told["status"], told["reason"]) == ("True", "NobodyTakesValues")
    world.forget()
    go(world, operator, 10)
    assert world.pods() == []
    assert world.condition("TaskCluster", "demo", "ScaleDownBlocked")["status"] == "False"


def test_by_force_the_last_one_goes_too(world, operator):
    running(world, operator, 2)
    world.compute(4)
    world.cluster(workers={"replicas": 0})
    go(world, operator, 5)
    world.get("TaskCluster", "demo")["metadata"]["annotations"] = {names.FORCE: "true"}
    go(world, operator, 8)
    assert world.pods() == []


def test_more_wanted_while_some_are_going_those_stay(world, operator):
    running(world, operator, 4)
    world.compute(40)  # it takes a while
    before = uids(world.pods())
    world.cluster(workers={"replicas": 1})
    go(world, operator, 2)
    world.cluster(workers={"replicas": 3})
    done = go(world, operator, 12)
    assert len(of(Stay, done)[0].workers) == 2
    assert not of(Create, done)
    assert len(world.ready()) == 3
    assert uids(world.pods()) < before
    assert len(world.values) == 40


def test_a_scheduler_that_was_started_anew_is_asked_again(world, operator):
    running(world, operator, 3)
    world.compute(40)
    world.cluster(workers={"replicas": 1})
    first = of(Retire, go(world, operator, 2))
    for pod in world.pods("scheduler"):
        world.delete_pod(pod["metadata"]["name"])
    second = of(Retire, go(world, operator, 20))
    assert set(second[0].uids) == set(first[0].uids)
    go(world, operator, 30)
    assert len(world.ready()) == 1
    assert len(world.values) == 40
    assert world.failures == []


def test_one_that_dies_while_it_is_to_go_and_comes_back_is_asked_again(world, operator):
    running(world, operator, 2)
    world.compute(40)
    world.cluster(workers={"replicas": 1})
    (retire,) = of(Retire, go(world, operator, 2))
    world.crash(retire.uids[0])
    go(world, operator, 12)
    assert len(world.ready()) == 1
    assert world.failures == []


def test_an_operator_killed_between_retiring_and_telling_goes_on(world, operator):
    running(world, operator, 3)
    world.compute(30)
    world.cluster(workers={"replicas": 2})
    operator.sync()
    for action in operator.steps():
        if not isinstance(action, (Retire, Note)):
            break  # before the status is written
    else:
        raise AssertionError("no status was to be written")
    operator = Operator(world)
    done = go(world, operator, 30)
    assert not of(Create, done)
    assert len(world.ready()) == 2
    assert world.failures == []


# --- rolled


def watch(world, operator, steps=60):
    """Go on; the fewest that were ready, and the most pods that there were."""
    fewest, most = 10**6, 0
    for _ in range(steps):
        go(world, operator)
        fewest, most = min(fewest, len(world.ready())), max(most, len(world.pods()))
    return fewest, most


@pytest.mark.parametrize(("replicas", "surge"), [(1, 1), (4, 1), (8, 2)])
def test_a_change_rolls_a_few_at_a_time_and_loses_nothing(world, operator, replicas, surge):
    running(world, operator, replicas)
    world.compute(3 * replicas)
    before = uids(world.pods())
    world.cluster(workers={"replicas": replicas, "threads": 2})
    fewest, most = watch(world, operator)
    assert not before & uids(world.pods())
    assert len(world.ready()) == replicas
    assert fewest >= replicas - surge  # those that are moving still work, but are not counted as ready
    assert most <= replicas + surge
    assert len(world.values) == 3 * replicas
    assert world.failures == []


def test_while_it_rolls_it_is_told(world, operator):
    running(world, operator, 4)
    world.cluster(workers={"replicas": 4, "threads": 2})
    go(world, operator, 3)
    assert world.condition("TaskCluster", "demo", "Progressing")["reason"] == "Rolling"
    go(world, operator, 60)
    assert world.condition("TaskCluster", "demo", "Progressing")["reason"] == "Settled"


def test_old_ones_stay_while_new_ones_do_not_come(world, operator):
    running(world, operator, 1)
    world.compute(3)
    old = uids(world.pods())
    world.missing_images.add("nothing:none")
    world.cluster(workers={"replicas": 1}, image="nothing:none")
    go(world, operator, 80)
    assert old <= uids(world.pods())
    assert len(world.values) == 3
    # and when the spec is put right, what was stuck is replaced
    world.cluster(workers={"replicas": 1}, image="mine:1")
    go(world, operator, 60)
    assert len(world.ready()) == 1
    assert len(world.pods()) == 1
    assert world.failures == []


def test_with_no_room_for_more_it_rolls_with_fewer(world, operator):
    world.room = 2  # 4 in all: the scheduler and 3 workers
    running(world, operator, 3)
    world.compute(9)
    before = uids(world.pods())
    world.cluster(workers={"replicas": 3, "threads": 2})
    fewest, _ = watch(world, operator, 200)
    assert fewest >= 2
    assert not before & uids(world.pods())
    assert len(world.ready()) == 3
    assert len(world.values) == 9


def test_scaled_and_changed_at_once(world, operator):
    running(world, operator, 6)
    world.compute(12)
    world.cluster(workers={"replicas": 2, "threads": 2})
    go(world, operator, 60)
    assert len(world.ready()) == 2
    assert len(world.pods()) == 2
    assert len(world.values) == 12
    assert world.failures == []


def test_changed_and_changed_back_those_that_are_left_stay(world, operator):
    running(world, operator, 4)
    world.compute(8)
    before = uids(world.pods())
    world.cluster(workers={"replicas": 4, "threads": 2})
    go(world, operator, 3)
    world.cluster(workers={"replicas": 4})
    go(world, operator, 40)
    assert len(before & uids(world.pods())) >= 3
    assert len(world.ready()) == 4
    assert world.failures == []


# --- what dies


def test_a_pod_that_is_deleted_is_replaced_at_once(world, operator):
    running(world, operator, 2)
    world.delete_pod(world.pods()[0]["metadata"]["name"])
    assert len(of(Create, go(world, operator))) == 1
    go(world, operator, 6)
    assert len(world.ready()) == 2


def end(world, pod, phase="Failed", code=1):
    pod["status"]["phase"] = phase
    ended = {"exitCode": code, "reason": "Error", "message": "boom", "finishedAt": None}
    pod["status"]["containerStatuses"] = [{"name": "worker", "state": {"terminated": ended}}]
    pod["status"]["conditions"] = []
    world.crash(pod["metadata"]["uid"])


def test_a_pod_that_fails_again_and_again_is_replaced_ever_later(world, operator):
    running(world, operator, 1)
    waits, since = [], None
    for _ in range(900):
        for pod in world.pods():
            if pod["status"].get("phase") == "Running":
                end(world, pod)
                pod["metadata"]["creationTimestamp"] = None  # it has not lived long
                pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = stamp_of(world)
                since = world.now
        if of(Create, go(world, operator)) and since is not None:
            waits.append(world.now - 1 - since)
    assert [round(wait) for wait in waits[:6]] == [1, 2, 4, 8, 16, 32]
    assert max(waits) <= 302
    assert len([key for key in world.objects if key[0] == "Pod" and "worker" in key[2]]) == 1


def stamp_of(world):
    return stamp(world.now)


def test_why_a_pod_has_failed_is_told_until_another_one_is_there(world, operator):
    running(world, operator, 1)
    pod = world.pods()[0]
    pod["metadata"]["annotations"][naming.DEATHS] = "5"
    end(world, pod)
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = stamp_of(world)
    go(world, operator, 3)
    told = world.condition("TaskCluster", "demo", "WorkersReady")
    assert told["reason"] == "ContainerEnded"
    assert "boom" in told["message"]
    assert "made again after a while" in told["message"]
    go(world, operator, 40)
    assert len(world.ready()) == 1


def test_one_that_has_lived_long_is_replaced_after_a_second(world, operator):
    running(world, operator, 1)
    world.step(length=1000.0)
    pod = world.pods()[0]
    pod["metadata"]["annotations"][naming.DEATHS] = "8"
    end(world, pod)
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = stamp_of(world)
    assert len(of(Create, go(world, operator, 3))) == 1


def test_pods_of_a_dead_node_do_not_count_and_are_never_deleted_by_force(world, operator):
    running(world, operator, 6)
    world.compute(6)
    dead = {pod["metadata"]["name"] for pod in world.pods() if pod["spec"]["nodeName"] == "node2"}
    if not dead:  # the kubelets here fill one node after the other
        for pod in world.pods()[:3]:
            pod["spec"]["nodeName"] = "node2"
            dead.add(pod["metadata"]["name"])
    world.node_down("node2")
    go(world, operator, int(EVICTED) + 20)
    assert len(world.ready()) == 6  # others have come
    stuck = {k[2] for k, p in world.objects.items() if k[0] == "Pod" and "deletionTimestamp" in p["metadata"]}
    assert stuck == dead  # and those are still there: their node cannot say that they are gone
    assert not [call for call in world.calls if call.startswith("Delete")]
    world.node_up("node2")
    go(world, operator, 10)
    assert len(world.pods()) == 6


# --- groups and the scheduler's wish


def scaled(world, operator, least=0, most=4, idle=5, **more):
    world.cluster(workers={"autoscale": {"min": least, "max": most, "idleSeconds": idle}, **more})
    go(world, operator, 8)
    world.calls.clear()


def test_as_many_as_the_scheduler_wishes_within_limits(world, operator):
    scaled(world, operator, 1, 4)
    assert len(world.ready()) == 1
    world.work["demo"] = 3
    go(world, operator, 8)
    assert len(world.ready()) == 3
    assert world.get("TaskCluster", "demo")["status"]["wish"] == {"workers": 3, "why": "work"}
    world.work["demo"] = 30
    go(world, operator, 8)
    assert len(world.ready()) == 4


def test_from_nothing_and_back_and_who_holds_a_value_stays(world, operator):
    scaled(world, operator, 0, 3)
    assert world.pods() == []
    world.work["demo"] = 3
    go(world, operator, 8)
    assert len(world.ready()) == 3
    world.compute(1)
    for process in world.processes.values():
        process.idle_since = world.now
    world.work["demo"] = 0
    assert not of(Retire, go(world, operator, 4))  # not idle for long enough
    go(world, operator, 20)
    (left,) = world.ready()
    assert world.processes[left["metadata"]["uid"]].values == world.values != set()
    world.forget()
    go(world, operator, 20)
    assert world.pods() == []
    assert world.failures == []


def test_who_works_stays_though_fewer_are_wished_for(world, operator):
    scaled(world, operator, 0, 4)
    world.work["demo"] = 4
    go(world, operator, 8)
    for process in world.processes.values():
        process.idle_since = None
    world.work["demo"] = 1
    assert not of(Retire, go(world, operator, 30))
    world.cluster(workers={"autoscale": {"min": 0, "max": 2, "idleSeconds": 5}})  # more than allowed: at once
    go(world, operator, 10)
    assert len(world.ready()) == 2


def test_while_nobody_can_be_asked_the_number_stays(world, operator):
    scaled(world, operator, 0, 4)
    world.work["demo"] = 3
    go(world, operator, 8)
    world.reachable = False
    world.work["demo"] = 0
    go(world, operator, 20)
    assert len(world.ready()) == 3
    world.delete_pod(world.pods()[0]["metadata"]["name"])
    go(world, operator, 8)
    assert len(world.ready()) == 3


def test_a_restart_of_the_scheduler_sends_nobody_away(world, operator):
    scaled(world, operator, 0, 4, idle=0)
    world.work["demo"] = 3
    go(world, operator, 8)
    world.compute(6)
    before = uids(world.pods())
    for pod in world.pods("scheduler"):
        world.delete_pod(pod["metadata"]["name"])
    done = go(world, operator, 12)
    assert not of(Retire, done)
    assert not of(Delete, done)
    assert uids(world.pods()) == before


def test_a_group_beside_the_clusters_own_workers(world, operator):
    running(world, operator, 1)
    world.group("large", replicas=2, taskResources={"large": 1}, resources={"limits": {"memory": "1Gi"}})
    go(world, operator, 8)
    large = [pod for pod in world.ready() if pod["metadata"]["labels"][names.GROUP_LABEL] == "large"]
    assert len(large) == 2
    assert all(pod["metadata"]["name"].startswith("demo-large-worker-") for pod in large)
    assert large[0]["metadata"]["ownerReferences"][0]["kind"] == "TaskWorkerGroup"
    status = world.get("TaskWorkerGroup", "large")["status"]
    assert (status["replicas"], status["readyReplicas"], status["desiredReplicas"]) == (2, 2, 2)
    assert world.get("TaskCluster", "demo")["status"]["replicas"] == 1
    assert world.condition("TaskWorkerGroup", "large", "Ready")["status"] == "True"
    world.compute(6)
    world.group("large", replicas=0, taskResources={"large": 1}, resources={"limits": {"memory": "1Gi"}})
    go(world, operator, 12)
    assert len(world.pods()) == 1
    assert len(world.values) == 6


def test_a_group_that_comes_when_tasks_need_it_and_goes_when_it_is_idle(world, operator):
    running(world, operator, 1)
    world.group("gpu", autoscale={"min": 0, "max": 2, "idleSeconds": 5}, taskResources={"gpu": 1})
    go(world, operator, 5)
    assert len(world.pods()) == 1
    world.unmet["demo"] = [{"workers": [], "resources": {"gpu": 1}, "wanted": 7}]
    go(world, operator, 3)
    world.unmet.clear()
    assert len(world.pods()) == 3
    go(world, operator, 4)
    for process in world.processes.values():
        process.idle_since = None if "-gpu-" in process.name else world.now
    assert not of(Retire, go(world, operator, 20))
    for process in world.processes.values():
        process.idle_since = world.now
    go(world, operator, 20)
    assert len(world.pods()) == 1


def test_a_need_that_no_group_can_meet_makes_nothing(world, operator):
    running(world, operator, 1)
    world.group("gpu", autoscale={"min": 0, "max": 2}, taskResources={"gpu": 1})
    world.unmet["demo"] = [
        {"workers": [], "resources": {"gpu": 4}, "wanted": 1},
        {"workers": ["somebody"], "resources": {}, "wanted": 1},
    ]
    go(world, operator, 8)
    assert len(world.pods()) == 1


def test_a_suspended_cluster_has_no_workers_of_groups_either(world, operator):
    running(world, operator, 1)
    world.group("large", replicas=2)
    go(world, operator, 8)
    world.cluster(workers={"replicas": 1}, suspend=True)
    go(world, operator, 6)
    assert world.pods() == []
    assert world.condition("TaskWorkerGroup", "large", "Ready")["reason"] == "Suspended"


def test_a_group_that_is_deleted_is_let_go(world, operator):
    running(world, operator, 1)
    world.group("large", replicas=2)
    go(world, operator, 8)
    world.remove(("TaskWorkerGroup", NS, "large"), "deleted")
    done = go(world, operator, 8)
    assert not of(Delete, done)
    assert len(world.pods()) == 1
