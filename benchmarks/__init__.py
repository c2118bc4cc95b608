"""How fast taskloom is, beside what else people use, on the same machine at the same time.

::

    python -m benchmarks                                  # everything; writes docs/benchmarks.md
    python -m benchmarks cluster                          # the cluster and its peers alone; prints
    python -m benchmarks cluster --measures uneven        # one of the things that are measured of the cluster alone
    python -m benchmarks profile noops                    # where the cluster's CPU time goes, by process and thread
    python -m benchmarks --quick --systems taskloom-sync dask-sync --workloads noops tree

What is run: :mod:`benchmarks.workloads`; by what: :mod:`benchmarks.systems`, whose ``SYSTEMS`` is the one place to
enter another system; the single figures (import, memory, first use): :mod:`benchmarks.figures`; what is measured of the
cluster alone (its start, memory, many workers, uneven work, values between processes, failures): :mod:`benchmarks.measures`;
the tables: :mod:`benchmarks.report`.

The rules, so that figures can be compared:

- Each system has a fresh process of its own for each workload, with one BLAS thread, and makes its pool in it before
  the clock starts. Pools are kept from one round to the next, also for peers that would make a new one for each call.
- The systems take turns: a round is one run of each, in an order that is drawn anew, so that what else the machine
  does hits all alike. The best of the rounds counts; the median stands beside it.
- The clock runs from a graph (or a function and a list of arguments) in hand to the values in hand. The graph is made
  before, the garbage collected.
- Every result is checked, after the clock has stopped.
- On the cluster's side the client, the scheduler and the workers share the machine; a system that takes more than two seconds
  for a run has one run there. Peers that the package index does not have are a gap in the tables, which says so.
"""
