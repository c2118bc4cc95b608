def order(deps, dependents, outputs):
    n = len(deps); out = []; state = bytearray(n)
    for o in outputs:
        stack = [o]
        while stack:
            i = stack[-1]
            if state[i] == 2:
                stack.pop(); continue
            if state[i] == 0:
                state[i] = 1
                todo = [d for d in deps[i] if not state[d]]
                if todo:
                    stack.extend(reversed(todo)); continue
            stack.pop()
            if any(state[d] != 2 for d in deps[i]): return out
            state[i] = 2; out.append(i)
    return out
def find_cycle(deps):
    return []
