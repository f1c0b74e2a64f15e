"""Slow loops that the vectorised forms must equal."""

import numpy as np


def paths_above(taxonomy, node):
    """Returns the node and all its ancestors."""
    return set(taxonomy.complete([node]).tolist())


def conditional(taxonomy, p, present, node):
    """Divides P(node) by the smallest P of its present ancestors."""
    above = [p[a] for a in paths_above(taxonomy, node) if present[a]]
    whole = min(above, default=1.0)
    return 0.0 if p[node] == 0 else min(p[node] / whole, 1.0)


def by_steps(taxonomy, p, present, node):
    """Multiplies the missing steps. A step with several parents follows the least probable one."""
    if present[node]:
        return 1.0
    parents = taxonomy.parent_lists[node]
    whole = min((p[a] for a in parents), default=1.0)
    step = 0.0 if p[node] == 0 else min(p[node] / whole, 1.0)
    return step * min((by_steps(taxonomy, p, present, a) for a in parents), default=1.0)


def aggregate(taxonomy, p, present, node, name):
    """Aggregates P over the missing path of an absent node."""
    values = [p[a] for a in sorted(paths_above(taxonomy, node)) if not present[a]]
    return {"mean": np.mean, "sum": np.sum, "min": np.min}[name](values)


def probability_of_any(taxonomy, values, present):
    """Combines the best P(missing) of each subtree. A node with several absent parents counts for the first one."""
    best = {}
    for node in range(taxonomy.num_labels):
        if present[node]:
            continue
        top = node
        while absent := [a for a in taxonomy.parent_lists[top] if not present[a]]:
            top = absent[0]
        best[top] = max(best.get(top, 0.0), values[node])
    return 1 - np.prod([1 - value for value in best.values()])


def hidden_alone(taxonomy, present, node):
    """Returns the nodes that only this end node supports."""
    ends = [
        n for n in range(taxonomy.num_labels)
        if present[n] and not any(present[c] and n in taxonomy.parent_lists[c] for c in range(taxonomy.num_labels))
    ]  # fmt: skip
    rest = set(taxonomy.complete([end for end in ends if end != node]).tolist())
    return {n for n in range(taxonomy.num_labels) if present[n]} - rest
