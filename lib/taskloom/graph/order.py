"""The order in which one worker should run a graph, so that values can be dropped early.

Tasks are ids 0..n-1. ``deps[i]`` holds the ids that i needs, once for each use; ``dependents[i]`` the reverse, as
None, an id, or a list of ids. The rules of this module:

- Linear: each task and each edge is looked at a bounded number of times; the one sort key is an integer label.
- No recursion: a chain of 100,000 tasks is an ordinary graph.
- Memory is counted in values: a value is alive from when it is computed until its last dependent has run. Sizes and
  durations are not known here.

What the order is made of, each part measured by ``benchmarks/ordering.py`` (results in ``docs/ordering.md``):

1. **Goals, depth first.** A stack of tasks to reach, at first the outputs. A task that cannot run yet puts the tasks
   that it needs above itself, the one with the greatest label on top. So a root is computed as late as possible.
2. **Labels** after Sethi and Ullman, "The generation of optimal code for arithmetic expressions" (J. ACM 17, 1970):
   how many values must be alive at once to compute a task. Where no value has two uses they are exact, and visiting
   the greatest first is optimal there: that is their theorem (for values of different sizes it would be Liu, "An
   application of generalized tree pebbling to sparse matrix factorization", SIAM J. Alg. Disc. Meth. 8, 1987; values
   of one size need only the older one). Where values are shared the problem is NP-complete (Sethi, "Complete register
   allocation problems", SIAM J. Comput. 4, 1975) and a cheaper label serves as a rule of thumb.
3. **Forward at once.** When a task has run, each dependent that became ready and whose run releases an input is run
   at once: it costs no memory. A chain is run to its end in one go.
4. **Pull.** When a value has one dependent left and that one lacks one input only, it becomes the next goal: the
   value would otherwise lie there until the stack comes back to it (means of u, v and uv: u waits for v).
5. **Finish a value.** When all that is left to do with a value is ready, and so are the tasks after it, those become
   the next goals: nothing has to be loaded for them, and they release the value (pieces of a few loads that are
   joined in several ways).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["find_cycle", "order"]

_DONE = -1
_READY = -2
# What a task lacks is counted in one integer: inputs that cannot run yet, plus _LATER for each that could run but was
# put off. So the hot path tests one number for "can run now", and its low bits for "could be had without new loads".
_LATER = 1 << 24
_FEW = 32  # the number of tasks that a value's last uses may have, to be looked at together: keeps that step linear


def order(deps: list[tuple[int, ...]], dependents: list[int | list[int] | None], outputs: Sequence[int]) -> list[int]:
    """Return the ids in the order in which one worker should run them.

    Args:
        deps: for each id the ids that it needs, in the order of its arguments, repeated if used twice; () for none.
        dependents: for each id the ids that need it: None, the only one, or a list (with the same repetitions).
        outputs: the ids that were asked for, in order; their values stay alive to the end. Every task has to be
            reachable from one of them. Ids that grow from dependents to dependencies (as a breadth-first numbering
            from the outputs gives them, nearly) make good labels; any numbering gives a valid order.

    Returns:
        All ids, each after those that it needs; the tasks of a linear chain stand side by side. If there is a cycle,
        a shorter list: see `find_cycle`.
    """
    if not any(deps):
        return list(range(len(deps)))
    if list in set(map(type, dependents)):
        return _shared(deps, dependents, outputs)
    return _forest(deps, dependents, outputs)


def _forest(deps: list[tuple[int, ...]], dependents: list[int | list[int] | None], outputs: Sequence[int]) -> list[int]:
    """Order a graph in which no value has two uses: the optimal postorder of Sethi and Ullman.

    A postorder is a preorder backwards, which needs no second visit of a task.
    """
    label = [1] * len(deps)
    weight = label.__getitem__
    visit = deps.copy()
    for t in range(len(deps) - 1, -1, -1):
        needs = deps[t]
        if needs:
            k = len(needs)
            if k == 1:
                high = label[needs[0]]
                label[t] = high if high > 1 else 2
            else:
                labels = [label[d] for d in needs]
                high = max(labels)
                if high == min(labels):
                    label[t] = high + k - 1 if high > 1 else k + 1
                else:
                    visit[t] = tuple(sorted(needs, key=weight, reverse=True))
                    labels.sort(reverse=True)
                    high = k + 1  # the inputs and the result
                    for held, own in enumerate(labels):
                        if held + own > high:
                            high = held + own
                    label[t] = high
    result: list[int] = []
    stack = [t for t in dict.fromkeys(outputs) if dependents[t] is None]
    append, pop, extend = result.append, stack.pop, stack.extend
    while stack:
        t = pop()
        append(t)
        needs = visit[t]
        if needs:
            extend(needs)
    result.reverse()
    return result


def _shared(deps: list[tuple[int, ...]], dependents: list[int | list[int] | None], outputs: Sequence[int]) -> list[int]:
    """Order a graph in which some values have several uses.

    On the stack, t is a goal and ~t marks a goal that was begun: all that t needs was put above it. A goal that was
    pulled can meet a task that was begun further down (a value and the mean that it waits for). It is then blocked: it
    is parked until that task has run. A budget bounds how often goals are tried in vain; beyond it there is no more
    pulling, and in that plain mode a task that meets itself is a cycle.
    """
    n = len(deps)
    after: list[Any] = dependents  # Any: a type checker does not narrow by `type(x) is int`, which is the fast test
    done, ready, later = _DONE, _READY, _LATER
    low = later - 1

    label = [1] * n
    for t in range(n - 1, -1, -1):
        needs = deps[t]
        if needs:
            high = 1
            for d in needs:
                own = label[d]
                if own > high:
                    high = own
            k = len(needs)
            label[t] = high + k - 1 if high > 1 else k + 1
    weight = label.__getitem__

    lacks = [len(needs) for needs in deps]
    uses = [len(to) if type(to) is list else 1 for to in after]  # runs after which a value is released
    for t in outputs:
        uses[t] += 1

    # The lightest outputs first, as what they leave is one value each. By large steps only: outputs are mostly the
    # blocks of an array, and going through them in their own order is worth more than a little weight.
    stack = list(dict.fromkeys(outputs))
    stack.reverse()
    stack.sort(key=lambda t: label[t].bit_length() // 3, reverse=True)

    result: list[int] = []
    forward: list[int] = []  # tasks that can run now and release something
    begun = bytearray(n)  # 1: has ~t on the stack, 2: was blocked, 3: begun again after that
    blocked_by: dict[int, int] = {}
    parked: dict[int, list[int]] = {}  # a begun task -> goals to take up again when it has run
    blocker = 0
    budget = 2 * n
    plain = False
    append, push, pop, extend = result.append, stack.append, stack.pop, stack.extend

    while stack:
        t = pop()
        if t < 0:
            t = ~t
            m = lacks[t]
            if m > 0:
                if begun[t] == 1:
                    parked.setdefault(blocker, []).append(t)
                begun[t] = 2
                blocked_by[t] = blocker
                budget -= len(deps[t])
                if budget < -8 * n and not plain:
                    plain = True
                    parked.clear()
                    begun = bytearray(n)
                    stack[:] = dict.fromkeys(outputs)
                    stack.reverse()
                continue
            if m == done:
                continue
        else:
            m = lacks[t]
            if m > 0:
                b = begun[t]
                if b:
                    if plain:
                        return result
                    d = t if b & 1 else blocked_by[t]
                    if begun[d] & 1 and lacks[d] != done:
                        blocker = d
                        continue
                begun[t] = b + 1
                push(~t)
                needs = deps[t]
                k = len(needs)
                if k == 2:
                    d, e = needs
                    if label[d] >= label[e]:
                        push(e)
                        push(d)
                    else:
                        push(d)
                        push(e)
                elif k == 1:
                    push(needs[0])
                else:
                    rest = [d for d in needs if lacks[d] != done]
                    rest.reverse()
                    if len(rest) > 1:
                        rest.sort(key=weight)
                    extend(rest)
                continue
            if m == done:
                continue
        # t can run: run it, and all that follows from it without a further load.
        while True:
            one = later if m else 1
            lacks[t] = done
            append(t)
            if parked:
                rest = parked.pop(t, ())  # type: ignore[arg-type]
                if rest:
                    extend(rest)
            for d in deps[t]:
                uses[d] = m = uses[d] - 1
                if m == 1:
                    to = after[d]
                    if type(to) is list:
                        for v in to:
                            m = lacks[v]
                            if m != done:
                                if m <= 0:
                                    forward.append(v)
                                elif (m == 1 or m == later) and budget > 0:
                                    push(v)
                                break
            to = after[t]
            if type(to) is int:
                lacks[to] = m = lacks[to] - one
                if not m:
                    t = to
                    continue
            elif to is not None:
                v = to[0]
                if v == to[-1] and to.count(v) == len(to):  # x * x: one dependent, twice
                    lacks[v] = m = lacks[v] - len(to)
                    if not m:
                        t = v
                        continue
                else:
                    for v in to:
                        lacks[v] = m = lacks[v] - 1
                        if not m:
                            for d in deps[v]:
                                if uses[d] == 1:
                                    forward.append(v)
                                    break
                            else:
                                w = after[v]
                                if type(w) is int:
                                    lacks[v] = ready
                                    lacks[w] = m = lacks[w] + low
                                    if not m & low:
                                        for d in deps[v]:
                                            if uses[d] <= _FEW:
                                                for w in _last_uses(after[d], after, lacks):
                                                    begun[w] = 0  # its inputs are at hand: it is never blocked
                                                    push(w)
            while forward:
                t = forward.pop()
                m = lacks[t]
                if m != done:
                    break
            else:
                break
    return result


def _last_uses(to: Any, after: list[Any], lacks: list[int]) -> list[int]:
    """The tasks after a value's remaining dependents, the first on top, if all those and these could run; or [].

    Also [] if there are more of them than one of them has inputs put off: about so many values would be released in
    exchange, and more partial results than that are no gain.
    """
    found: list[int] = []
    if type(to) is not list or len(to) > 2 * _FEW:
        return found
    most = 0
    for v in to:
        m = lacks[v]
        if m == _READY:
            w = after[v]
            waiting, missing = divmod(lacks[w], _LATER)
            if missing or waiting > _FEW:
                return []
            if waiting > most:
                most = waiting
            found.append(w)
        elif m != _DONE:
            return []
    if len(found) > most:
        return []
    found.reverse()
    return found


def find_cycle(deps: Sequence[Sequence[int]]) -> list[int]:
    """Return one cycle of a graph.

    Args:
        deps: for each id the ids that it needs.

    Returns:
        Ids [a, b, ..., a], each of which needs the next; [a, a] for a task that needs itself; [] if there is no cycle.
    """
    unseen, open_, closed = 0, 1, 2
    state = bytearray(len(deps))
    for root in range(len(deps)):
        if state[root] != unseen:
            continue
        state[root] = open_
        path = [root]
        branches = [iter(deps[root])]
        while path:
            for d in branches[-1]:
                if state[d] == open_:
                    return [*path[path.index(d) :], d]
                if state[d] == unseen:
                    state[d] = open_
                    path.append(d)
                    branches.append(iter(deps[d]))
                    break
            else:
                state[path.pop()] = closed
                branches.pop()
    return []
