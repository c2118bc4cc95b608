"""What users write: the resources as models, their schema, quantities, and merging of pod templates. Pure.

- :mod:`~taskloom_operator.spec.models`: TaskCluster, TaskWorkerGroup and TaskJob.
- :mod:`~taskloom_operator.spec.crd`: the CustomResourceDefinitions, made from the models.
- :mod:`~taskloom_operator.spec.quantities`: ``"100m"`` and ``"2Gi"`` as numbers.
- :mod:`~taskloom_operator.spec.merge`: strategic merge of pod templates.
"""
