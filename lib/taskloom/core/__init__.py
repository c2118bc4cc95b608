"""The cluster's machines: scheduler, worker and client, pure.

Events and the time go in, actions come out; no clock, socket, thread, setting or log inside. So the same objects run behind
real connections (:mod:`taskloom.node`, :mod:`taskloom.client`) and a million times a minute in a simulated cluster
(:mod:`taskloom.testing`). What they say to each other is in :mod:`taskloom.core.messages`.
"""
