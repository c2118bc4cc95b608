"""The processes of a cluster: what runs tasks, what keeps their values, and what watches both.

A shell: threads, files and clocks are here; what is decided is decided by pure objects (:mod:`taskloom.core`,
:mod:`taskloom.node.memory`).
"""
