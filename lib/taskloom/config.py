def get(name, default=None): return default
def positive_int(n, v): return v
