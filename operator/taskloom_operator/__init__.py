"""The operator: clusters, worker groups and jobs as resources of Kubernetes.

What it decides is pure, and its shell decides nothing:

- :mod:`taskloom_operator.spec`: the resources, as people write them.
- :mod:`taskloom_operator.observe`: what is seen of one of them.
- :mod:`taskloom_operator.desired`: from that and the time, what is to be done (:mod:`taskloom_operator.actions`).
- :mod:`taskloom_operator.manifests`: how the objects look that are made.

It never imports taskloom: it speaks to schedulers over HTTP (docs/http.md).
"""
