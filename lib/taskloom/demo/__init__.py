"""What ``taskloom demo`` runs: two computations, as a user would write them, on every local scheduler.

These files use what everybody can use, and nothing else: read them as examples. :mod:`taskloom.demo.logs` analyses log
files with a bag, :mod:`taskloom.demo.matrix` multiplies matrices with a graph, :mod:`taskloom.demo.show` runs both in a
plain loop, in this thread, on threads and on processes, compares the results, and prints how long each took.
"""
