"""What is read from a pod's object."""

from __future__ import annotations

import pytest

from taskloom_operator.desired.pods import Trouble, read, told, trouble
from taskloom_operator.desired.times import stamp

NOW = 1_700_000_000.0


def pod(phase="Running", conditions=(), worker=None, others=(), **more):
    statuses = ([{"name": "worker", "image": "taskloom:1", **worker}] if worker is not None else []) + list(others)
    return {
        "metadata": {"name": "demo-worker-a", "namespace": "lab", "uid": "u", "creationTimestamp": stamp(NOW)},
        "spec": {"containers": [{"name": "worker", "image": "taskloom:1"}]},
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": statuses, **more},
    }


READY = {"type": "Ready", "status": "True"}
RUNS = {"state": {"running": {}}}


def test_started_means_that_its_startup_probe_has_found_it_registered():
    assert not read(pod(worker={**RUNS, "started": False})).started
    assert read(pod(worker={**RUNS, "started": True})).started
    # a container that was started again has to register again
    assert not read(pod(worker={"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "started": True})).started
    assert not read({"metadata": {"name": "a", "uid": "u"}, "spec": {}}).started


def test_one_that_has_ended_well_has_ended_though_a_sidecar_runs_on():
    sidecar = {"name": "proxy", **RUNS}
    assert read(pod(worker={"state": {"terminated": {"exitCode": 0}}}, others=[sidecar])).ended
    assert not read(pod(worker={"state": {"terminated": {"exitCode": 1}}}, others=[sidecar])).ended  # started again
    assert read(pod("Failed")).ended
    assert read(pod("Succeeded")).ended


def test_ready_says_the_pod():
    assert read(pod(conditions=[READY], worker={**RUNS, "started": True})).ready
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": stamp(NOW + 5)}
    found = read(pod(conditions=[unready], worker={**RUNS, "started": True}))
    assert (found.ready, found.unready_at) == (False, NOW + 5)


def test_going_is_one_that_is_being_deleted_or_of_which_we_know_it():
    gone = pod()
    gone["metadata"]["deletionTimestamp"] = stamp(NOW)
    assert read(gone).going
    assert read(pod(), frozenset({"u"})).going
    assert not read(pod()).going


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        (
            pod(worker={"state": {"waiting": {"reason": "ErrImageNeverPull", "message": "not present"}}}),
            "ImagePullError",
            "the image taskloom:1 cannot be had: not present",
        ),
        (
            pod(
                worker={
                    "state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}}
                }
            ),
            "CreateContainerConfigError",
            'the container worker cannot start: secret "x" not found',
        ),
        (
            pod(
                worker={
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                    "lastState": {"terminated": {"exitCode": 2, "reason": "Error", "message": "a\n\nb\n"}},
                }
            ),
            "CrashLoop",
            "the container worker ends again and again: exit code 2: a\nb",
        ),
        (
            pod(worker={**RUNS, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}),
            "Restarted",
            "the container worker was started again, it had ended: OOMKilled, exit code 137",
        ),
        (
            pod(worker={"state": {"terminated": {"exitCode": 1, "message": "no token"}}}),
            "ContainerEnded",
            "the container worker has ended: exit code 1: no token",
        ),
        (
            pod("Failed", reason="Evicted", message="The node was low on resource: memory."),
            "Evicted",
            "the pod has failed: Evicted: The node was low on resource: memory.",
        ),
        (
            pod(
                "Pending",
                [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}],
            ),
            "Unschedulable",
            "0/2 nodes",
        ),
        (
            pod(
                worker=RUNS, others=[{"name": "proxy", "image": "p", "state": {"waiting": {"reason": "ErrImagePull"}}}]
            ),
            "ImagePullError",
            "the image p cannot be had",
        ),
        (
            pod(
                "Pending",
                initContainerStatuses=[{"name": "fetch", "state": {"terminated": {"exitCode": 3, "reason": "Error"}}}],
            ),
            "ContainerEnded",
            "the container fetch has ended: exit code 3",
        ),
    ],
)
def test_what_is_wrong_is_told_in_the_words_of_who_knows(found, reason, words):
    assert trouble(found) == Trouble(reason, words)


def test_what_passes_by_itself_is_no_trouble():
    assert trouble(pod("Pending", worker={"state": {"waiting": {"reason": "ContainerCreating"}}})) is None
    assert trouble(pod("Pending", worker={"state": {"waiting": {"reason": "PodInitializing"}}})) is None
    assert trouble(pod(worker=RUNS)) is None


def test_the_kubelets_two_words_for_one_thing_are_one():
    detail = "rpc error: code = NotFound"
    one = {"waiting": {"reason": "ErrImagePull", "message": detail}}
    other = {
        "waiting": {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "x": ErrImagePull: {detail}'}
    }
    assert trouble(pod(worker={"state": one})) == trouble(pod(worker={"state": other}))


def test_a_crash_loop_is_the_same_in_all_its_states():
    ended = {"exitCode": 2, "reason": "Error", "message": "boom"}
    states = (
        {"state": {"terminated": ended}, "lastState": {"terminated": ended}},
        {
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
            "lastState": {"terminated": ended},
        },
        {"state": {"running": {}}, "lastState": {"terminated": ended}},
    )
    told = {trouble(pod(worker={**state, "restartCount": 4})) for state in states}
    assert told == {Trouble("CrashLoop", "the container worker ends again and again: exit code 2: boom")}


def test_last_words_are_cut_at_their_beginning():
    said = "\n".join(f"line {n}" for n in range(1000))
    found = trouble(pod(worker={"state": {"terminated": {"exitCode": 1, "message": said}}}))
    assert found is not None
    assert found.message.endswith("line 999")
    assert len(found.message) < 700


def test_of_many_pods_the_commonest_comes_first_and_the_rest_is_counted():
    troubles = [Trouble("A", "a")] * 3 + [Trouble("B", "b")] + [Trouble(f"C{n}", "c") for n in range(4)] + [None]
    assert told(troubles) == ("A", "3 workers: a; 1 worker: b; 1 worker: c; and 3 other reasons")
    assert told([None]) == ("", "")


def test_a_pod_that_ended_is_tried_again_later_each_time():
    def ended(deaths, lived):
        found = pod("Failed", worker={"state": {"terminated": {"exitCode": 1, "finishedAt": stamp(NOW + lived)}}})
        found["metadata"]["annotations"] = {"taskloom.dev/deaths": str(deaths)}
        pod_read = read(found)
        return pod_read.retry_at - pod_read.ended_at

    assert [ended(deaths, 5) for deaths in (0, 1, 2, 20)] == [1, 2, 4, 300]
    assert ended(20, 3600) == 1  # it has not died of what the others died of
