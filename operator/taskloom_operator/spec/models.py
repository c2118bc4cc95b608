"""TaskCluster, TaskWorkerGroup and TaskJob: what users write, and what is told them in the status.

The schemas of the CustomResourceDefinitions are made from these classes (:mod:`taskloom_operator.spec.crd`): what is below an
attribute here is what ``kubectl explain`` says about it. So what holds:

- Every rule that the API server can check is in the schema: types, limits, and :class:`Rule`. Who reads a resource checks
  the same rules again, as there may be an older schema in the cluster.
- Fields that nobody here knows are no error (there may be a newer schema in the cluster). What users write into a pod
  template is kept as it is.
- A new field is optional or has a default, and no rule gets stricter: what was accepted once is accepted for good.

>>> cluster = TaskCluster.parse({"metadata": {"name": "demo"}, "spec": {"workers": {"replicas": 3}}})
>>> cluster.spec.workers.replicas, cluster.spec.scheduler.service_type
(3, 'ClusterIP')
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from taskloom_operator.spec.quantities import LONGEST, PATTERN, QuantityError, quantity, whole

__all__ = [
    "Autoscale",
    "Condition",
    "Draining",
    "Model",
    "ObjectMeta",
    "Resource",
    "Rule",
    "Scheduler",
    "SpecError",
    "TaskCluster",
    "TaskClusterSpec",
    "TaskClusterStatus",
    "TaskJob",
    "TaskJobSpec",
    "TaskJobStatus",
    "TaskWorkerGroup",
    "TaskWorkerGroupSpec",
    "TaskWorkerGroupStatus",
    "Wish",
    "WorkerFields",
    "Workers",
]

_LONGEST_NAME = 40  # of a cluster: with what is put behind it, names of pods and Services are 63 characters at most
_LONGEST_PAIR = 50  # of a cluster and a group of it, together
_LONGEST_JOB = 32  # of a job: its cluster is called NAME-cluster
_LONGEST_SCRIPT = 200_000  # bytes; it becomes an annotation, and all annotations together have 256 KiB
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


class SpecError(ValueError):
    """A resource says what it cannot mean; the message names the fields, one a line."""


class Rule(NamedTuple):
    """What has to hold between fields, for the API server (CEL) and for who reads the resource.

    Attributes:
        cel: the rule; ``self`` is the object that has it.
        message: what is said where it does not hold.
        holds: the same in Python; None for a rule about a change, which only the API server sees.
        field: the field that the error is put down to, below the object: ".autoscale".
    """

    cel: str
    message: str
    holds: Callable[[Any], bool] | None = None
    field: str = ""


class Model(BaseModel):
    """What all have in common: names in camelCase outside and in snake_case here, and rules."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.rules:
            schema["x-kubernetes-validations"] = [
                {"rule": rule.cel, "message": rule.message} | ({"fieldPath": rule.field} if rule.field else {})
                for rule in cls.rules
            ]
        return schema

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        for rule in self.rules:
            if rule.holds is not None and not rule.holds(self):
                raise PydanticCustomError("rule", "{message}", {"message": rule.message, "field": rule.field})
        return self


def _quantity(value: int | str) -> int | str:
    if quantity(value) < 0:
        raise QuantityError(f"{value!r} is less than nothing")
    return value


_QUANTITY_SCHEMA = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
    "pattern": PATTERN,
    "minimum": 0,
    "maxLength": LONGEST,
}
_ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}


def _list(what: str, key: str, more: Mapping[str, Any] | None = None, of: str = "string") -> dict[str, Any]:
    """The schema of a list in a pod template: of each item the key is known, and what else Kubernetes knows is kept.

    Null may stand for it, as for all that is not wanted of ours.
    """
    known = {key: {"type": of, **({"minLength": 1} if of == "string" else {})}, **(more or {})}
    item = {**_ANYTHING, "required": [key], "properties": known}
    return {"type": "array", "nullable": True, "description": what, "items": item}


_CONTAINER = {
    "image": {"type": "string", "nullable": True},
    "command": {"type": "array", "nullable": True, "items": {"type": "string"}},
    "args": {"type": "array", "nullable": True, "items": {"type": "string"}},
    "env": _list("Merged by their names.", "name", {"value": {"type": "string", "nullable": True}}),
    "ports": _list("Merged by their numbers and protocols.", "containerPort", of="integer"),
    "volumeMounts": _list("Merged by their paths.", "mountPath"),
}

Quantity: TypeAlias = Annotated[int | str, AfterValidator(_quantity), WithJsonSchema(_QUANTITY_SCHEMA)]

Resources: TypeAlias = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            **_ANYTHING,
            "properties": {
                "requests": {
                    "type": "object",
                    "description": "What a node has to have free.",
                    "additionalProperties": _QUANTITY_SCHEMA,
                },
                "limits": {
                    "type": "object",
                    "description": "What it may use at most.",
                    "additionalProperties": _QUANTITY_SCHEMA,
                },
            },
        }
    ),
]

PodTemplate: TypeAlias = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "metadata": {
                    **_ANYTHING,
                    "description": "Labels and annotations to add.",
                    "properties": {"labels": _WORDS, "annotations": _WORDS},
                },
                "spec": {
                    **_ANYTHING,
                    "description": "Any field of a pod's spec.",
                    "properties": {
                        "containers": _list(
                            "Merged by their names with the operator's; others are sidecars.", "name", _CONTAINER
                        ),
                        "initContainers": _list("Run before the others.", "name", _CONTAINER),
                        "volumes": _list("Merged by their names with the operator's.", "name"),
                        "nodeSelector": {**_WORDS, "nullable": True},
                        "tolerations": {"type": "array", "nullable": True, "items": _ANYTHING},
                    },
                },
            },
        }
    ),
]

SecretReferences: TypeAlias = Annotated[
    list[dict[str, Any]],
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "description": "Of a Secret in the same namespace."}},
            },
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        }
    ),
]

Environment: TypeAlias = Annotated[
    list[dict[str, Any]],
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "value": {"type": "string"},
                    "valueFrom": {**_ANYTHING, "description": "As in a container of a pod."},
                },
            },
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        }
    ),
]

Time: TypeAlias = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Word: TypeAlias = Annotated[str, Field(max_length=_LONGEST_SCRIPT)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Autoscale(Model):
    """As many workers as the scheduler wishes for, within limits."""

    rules = (
        Rule(
            "self.min <= self.max",
            "autoscale.min is more than autoscale.max",
            lambda self: self.min <= self.max,
            ".min",
        ),
    )

    min: Count = 0
    """How many workers there are at least."""
    max: Positive
    """How many there are at most."""
    idle_seconds: Count = 60
    """For how long a worker has had nothing to do before it may go. Its values are moved first."""


class WorkerFields(Model):
    """What a group of workers looks like."""

    rules = (
        Rule(
            "!(has(self.replicas) && has(self.autoscale))",
            "replicas and autoscale exclude each other: leave one of them out",
            lambda self: self.replicas is None or self.autoscale is None,
            ".autoscale",
        ),
        Rule(
            "has(self.replicas) || has(self.autoscale)",
            "one of replicas and autoscale has to be given",
            lambda self: self.replicas is not None or self.autoscale is not None,
            ".replicas",
        ),
        Rule(
            "!has(self.taskResources) || self.taskResources.all(name, name != '' && !name.contains('='))",
            "names of taskResources are not empty, and have no '=' in them",
            lambda self: all(name and "=" not in name for name in self.task_resources or ()),
            ".taskResources",
        ),
    )

    replicas: Count | None = None
    """How many workers there are. This or autoscale."""
    autoscale: Autoscale | None = None
    """Have as many workers as the scheduler wishes for, instead of replicas."""
    threads: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """How many tasks a worker runs at a time. By default its limit of CPUs, else its request, rounded up, else 1."""
    memory_limit: Quantity | None = None
    """How much memory the values of a worker may take before they go to disk, and it waits; 0: as much as there is. By default
    the container's memory limit."""
    resources: Resources | None = None
    """Requests and limits of the worker's container, as in a pod."""
    task_resources: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(max_length=64)] | None = None
    """What tasks can ask for by name (client.submit(f, resources={"gpu": 1})), and how much of it each worker has."""
    pod_template: PodTemplate | None = None
    """Changes to the pods that the operator makes: a strategic merge of metadata and spec. The worker's container has the name
    "worker". Items of lists are merged by their names; $patch: delete in an item, or null, takes away what is the operator's. A
    change rolls the workers, a few at a time."""

    def nthreads(self) -> int:
        """How many tasks a worker runs at a time.

        >>> Workers(replicas=1, resources={"limits": {"cpu": "1500m"}}).nthreads()
        2
        """
        if self.threads is not None:
            return self.threads
        for part in ("limits", "requests"):
            cpu = ((self.resources or {}).get(part) or {}).get("cpu")
            if cpu is not None:
                return max(1, whole(cpu))
        return 1

    def memory_bytes(self) -> int:
        """How much memory a worker may use, in bytes; 0: no limit.

        >>> Workers(replicas=1, resources={"limits": {"memory": "2Gi"}}).memory_bytes()
        2147483648
        """
        if self.memory_limit is not None:
            return whole(self.memory_limit)
        memory = ((self.resources or {}).get("limits") or {}).get("memory")
        return 0 if memory is None else whole(memory)


class Workers(WorkerFields):
    """The cluster's own workers, the group "default"."""


class Scheduler(Model):
    """The scheduler's pod and Service."""

    resources: Resources | None = None
    """Requests and limits of the scheduler's container, as in a pod."""
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Of the Service NAME-scheduler, with the ports tls (8786) and http (8787)."""
    pod_template: PodTemplate | None = None
    """Changes to the pod that the operator makes: a strategic merge of metadata and spec. The scheduler's container has the
    name "scheduler"."""


class TaskClusterSpec(Model):
    """A scheduler and its workers."""

    image: Annotated[str, Field(min_length=1)] | None = None
    """What scheduler and workers run. By default the operator's setting."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When nodes pull the image. By default the operator's setting."""
    image_pull_secrets: SecretReferences | None = None
    """Secrets of this namespace with which the image is pulled."""
    scheduler: Scheduler = Field(default_factory=Scheduler, json_schema_extra={"default": {}})
    """The scheduler's pod and Service."""
    workers: Workers = Field(
        default_factory=lambda: Workers(replicas=1), json_schema_extra={"default": {"replicas": 1}}
    )
    """The cluster's own workers. TaskWorkerGroups add others."""
    suspend: bool = False
    """Take all pods away, and bring them back when this is false again. Results in memory are lost."""
    idle_timeout: Positive | None = None
    """Seconds with no client and nothing to do after which the cluster is finished and its pods go. By default never."""
    ttl_seconds_after_finished: Count | None = None
    """Seconds after which a finished cluster is deleted. By default never."""


class Condition(Model):
    """One thing that is so, or is not, or nobody knows."""

    type: Annotated[str, Field(max_length=316)]
    """Which one."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""
    reason: Annotated[str, Field(max_length=1024)] = ""
    """Why, in one word."""
    message: Annotated[str, Field(max_length=32_768)] = ""
    """Why, in words."""
    last_transition_time: Time
    """Since when it is as it is."""
    observed_generation: int | None = None
    """Of which generation of the resource it is told."""


class Wish(Model):
    """How many workers the scheduler could use."""

    workers: int = 0
    """So many."""
    why: str = ""
    """In its own words."""


class Draining(Model):
    """A worker that is about to go, when its values are elsewhere."""

    name: str
    """Of the pod."""
    uid: str
    """Of the pod."""
    since: Time
    """When it was asked to go."""


Conditions: TypeAlias = Annotated[
    list[Condition],
    Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]


class TaskWorkerGroupStatus(Model):
    """What is so of a group of workers."""

    replicas: int = 0
    """How many worker pods there are."""
    ready_replicas: int = 0
    """How many of them are ready."""
    desired_replicas: int = 0
    """How many there are to be."""
    selector: str = ""
    """The labels of the worker pods."""
    wish: Wish | None = None
    """What the scheduler wishes for, where autoscale is given."""
    draining: Annotated[
        list[Draining],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["uid"]}),
    ] = []
    """The workers that are about to go."""
    conditions: Conditions = []
    """Ready, and ScaleDownBlocked."""
    observed_generation: int | None = None
    """The generation of the resource that all this is told of."""


class TaskClusterStatus(TaskWorkerGroupStatus):
    """What is so of a cluster. The numbers are those of its own workers, without the groups'."""

    phase: Literal["Pending", "Running", "Suspended", "Finished", "Failed"] | None = None
    """Where it is in its life, in one word; conditions say more."""
    address: str | None = None
    """Where clients inside of the Kubernetes cluster find the scheduler."""
    finished_at: Time | None = None
    """When it was idle for long enough."""
    conditions: Conditions = []
    """Ready, SchedulerReady, WorkersReady, Progressing, ScaleDownBlocked, Suspended."""


class ObjectMeta(Model):
    """What all objects of Kubernetes have."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class Resource(Model):
    """One of ours, without its status: that is the operator's own, and never read as the user's wish."""

    metadata: ObjectMeta

    @classmethod
    def parse(cls, manifest: Mapping[str, Any]) -> Self:
        """Read a resource as its JSON is.

        Raises:
            SpecError: it breaks a rule; the message names the fields.

        >>> TaskCluster.parse({"metadata": {"name": "demo"}, "spec": {"workers": {"replicas": -1}}})
        Traceback (most recent call last):
        taskloom_operator.spec.models.SpecError: spec.workers.replicas: Input should be greater than or equal to 0
        """
        try:
            return cls.model_validate({"metadata": manifest.get("metadata"), "spec": manifest.get("spec") or {}})
        except ValidationError as error:
            raise SpecError("\n".join(_complaint(one) for one in error.errors(include_url=False))) from None


def _complaint(error: Any) -> str:
    place = [str(part) for part in error["loc"] if part not in ("int", "str")]  # pydantic names members of unions too
    path = (".".join(place) + error.get("ctx", {}).get("field", "")).lstrip(".")
    said = error["msg"].removeprefix("Value error, ")
    return f"{path}: {said}" if path else said


def _name_rule(kind: str, longest: int = _LONGEST_NAME) -> Rule:
    return Rule(
        f"self.metadata.name.size() <= {longest} && self.metadata.name.matches('^{_NAME.pattern}$')",
        f"a {kind} has a name of lower-case letters, digits and '-' that begins with a letter, of at most "
        f"{longest} characters, because names of pods and Services are made of it",
        lambda self: len(self.metadata.name) <= longest and _NAME.fullmatch(self.metadata.name) is not None,
        ".metadata.name",
    )


class TaskCluster(Resource):
    """A scheduler and its workers, for as long as the resource is there."""

    rules = (_name_rule("TaskCluster"),)

    spec: TaskClusterSpec
    """What there is to be."""


class TaskWorkerGroupSpec(WorkerFields):
    """More workers for a cluster, of another shape."""

    cluster: Annotated[
        str,
        Field(
            min_length=1,
            max_length=_LONGEST_NAME,
            json_schema_extra={
                "x-kubernetes-validations": [
                    {
                        "rule": "self == oldSelf",
                        "message": "cluster cannot be changed: delete the group and make another",
                    }
                ]
            },
        ),
    ]
    """The name of a TaskCluster in this namespace. It cannot be changed."""
    image: Annotated[str, Field(min_length=1)] | None = None
    """What these workers run. By default what the cluster runs."""


class TaskWorkerGroup(Resource):
    """More workers for a TaskCluster, of another shape: with GPUs, with much memory."""

    rules = (
        _name_rule("TaskWorkerGroup"),
        Rule(
            "self.metadata.name != 'default'",
            "the group 'default' is the cluster's own workers; take another name",
            lambda self: self.metadata.name != "default",
            ".metadata.name",
        ),
        Rule(
            f"self.metadata.name.size() + self.spec.cluster.size() <= {_LONGEST_PAIR}",
            f"name and spec.cluster together have at most {_LONGEST_PAIR} characters, because names of pods are made of "
            "both",
            lambda self: len(self.metadata.name) + len(self.spec.cluster) <= _LONGEST_PAIR,
            ".metadata.name",
        ),
    )

    spec: TaskWorkerGroupSpec
    """What there is to be."""


class TaskJobSpec(Model):
    """A program, and the cluster that it runs on."""

    rules = (
        Rule(
            "has(self.script) != has(self.command)",
            "one of script and command has to be given, and not both",
            lambda self: (self.script is None) != (self.command is None),
            ".script",
        ),
        Rule(
            "!self.cluster.suspend",
            "cluster.suspend: suspend the job instead, by its own field suspend",
            lambda self: not self.cluster.suspend,
            ".cluster",
        ),
        Rule(
            f"!has(self.script) || size(bytes(self.script)) <= {_LONGEST_SCRIPT}",
            f"script has at most {_LONGEST_SCRIPT} bytes; put a longer program into the image, and give its command",
            lambda self: self.script is None or len(self.script.encode()) <= _LONGEST_SCRIPT,
            ".script",
        ),
        Rule(
            "has(self.script) == has(oldSelf.script) && (!has(self.script) || self.script == oldSelf.script) && "
            "has(self.command) == has(oldSelf.command) && (!has(self.command) || self.command == oldSelf.command) && "
            "has(self.args) == has(oldSelf.args) && (!has(self.args) || self.args == oldSelf.args)",
            "script, command and args cannot be changed: delete the job and make another",
        ),
    )

    cluster: TaskClusterSpec = Field(
        default_factory=TaskClusterSpec,
        json_schema_extra={
            "default": {},
            "x-kubernetes-validations": [
                {"rule": "self == oldSelf", "message": "cluster cannot be changed: delete the job and make another"}
            ],
        },
    )
    """The cluster, as the spec of a TaskCluster. It comes with the job and cannot be changed."""
    script: Annotated[str, Field(min_length=1, max_length=_LONGEST_SCRIPT)] | None = None
    """The text of a Python program. Client() in it is connected with the job's cluster."""
    command: Annotated[list[Word], Field(min_length=1, max_length=1000)] | None = None
    """What is run, instead of a script."""
    args: Annotated[list[Word], Field(max_length=1000)] | None = None
    """Arguments of the script or command."""
    image: Annotated[str, Field(min_length=1)] | None = None
    """What the program runs in. By default what the cluster runs."""
    env: Environment | None = None
    """Environment variables of the program, as in a container of a pod."""
    pod_template: PodTemplate | None = None
    """Changes to the pod that the operator makes for the program: a strategic merge of metadata and spec. Its container has the
    name "job"."""
    backoff_limit: Count = 0
    """How often the program is started again after it has failed."""
    active_deadline_seconds: Positive | None = None
    """Seconds after which a job that still runs has failed. By default it may take as long as it does."""
    ttl_seconds_after_finished: Count | None = None
    """Seconds after its end after which the resource is deleted. By default never."""
    suspend: bool = False
    """Take the pods of the program and of the cluster away, or do not make them yet; a queue such as Kueue sets this."""
    cleanup: Literal["Always", "OnSuccess", "Never"] = "Always"
    """Whether the cluster goes when the program has ended."""


class TaskJobStatus(Model):
    """What is so of a job."""

    phase: Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"] | None = None
    """Where it is in its life, in one word."""
    exit_code: int | None = None
    """What the program ended with."""
    reason: str | None = None
    """Why it has failed."""
    last_lines: str | None = None
    """The end of what the program has written, 4 KB at most."""
    start_time: Time | None = None
    """When it was begun."""
    completion_time: Time | None = None
    """When it had ended."""
    cluster: str | None = None
    """The name of its TaskCluster."""
    conditions: Conditions = []
    """Complete, Failed, Suspended."""
    observed_generation: int | None = None
    """The generation of the resource that all this is told of."""


class TaskJob(Resource):
    """A program that runs on a TaskCluster of its own, which comes before it and goes after it."""

    rules = (_name_rule("TaskJob", _LONGEST_JOB),)

    spec: TaskJobSpec
    """What there is to be."""
