"""The operator: it makes Kubernetes run what TaskClusters, TaskWorkerGroups and TaskJobs say.

::

    spec        pure   what users write: models, and the CustomResourceDefinitions made of them
    observe     pure   what was seen: objects of the cluster, and what schedulers say
    actions     pure   what is to be done
    manifests   pure   what a pod, a Deployment, a Service looks like
    desired     pure   reconcile(observed, now) -> Plan: all decisions
    watch       shell  lists and watches objects
    apply       shell  does what a Plan says
    scheduler_api      asks schedulers over HTTP
    reconcile   shell  a queue of what to look at, one at a time each
    leader, health, metrics, main

Level-based: news only say which resource to look at; then all of it is read anew, decided, done, and the status is written
once. The operator keeps nothing that it could not see again: it may be killed between any two actions.

Rules that hold everywhere: the spec is the user's, nothing here writes it; there are no finalizers; what holds values is not
deleted before they are elsewhere.
"""

__version__ = "0.1.0"
