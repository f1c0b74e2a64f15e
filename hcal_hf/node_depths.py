"""Computes the depths of nodes and finds cycles, from flat arrays of edges."""

from collections.abc import Sequence

import numpy as np


def node_depths(edges: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Computes the length of the longest path from a root to each node.

    Removes all current roots, level by level (Kahn, "Topological Sorting of Large Networks", 1962).

    Args:
        edges (`np.ndarray` of shape `[E, 2]`): (parent, child) as indices into `labels`, in any order.
        labels: the L labels, for error messages.

    Returns:
        int64 array `[L]`.

    Raises:
        ValueError: for a self-loop or a cycle (the message prints the cycle).
    """
    num_labels = len(labels)
    depths = np.zeros(num_labels, dtype=np.int64)
    loops = edges[edges[:, 0] == edges[:, 1]]
    if len(loops):
        raise ValueError(f"{labels[loops[0, 0]]!r} is its own parent: remove that edge.")
    by_parent = edges[np.argsort(edges[:, 0], kind="stable")]
    offsets = np.searchsorted(by_parent[:, 0], np.arange(num_labels + 1))
    open_parents = np.bincount(edges[:, 1], minlength=num_labels)
    frontier = np.flatnonzero(open_parents == 0)
    done, depth = 0, 0
    while len(frontier):
        done += len(frontier)
        depths[frontier] = depth
        starts, counts = offsets[frontier], offsets[frontier + 1] - offsets[frontier]
        runs = np.repeat(starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(counts.sum())
        children = np.sort(by_parent[runs, 1])
        starts = np.flatnonzero(np.diff(children, prepend=-1))
        times = np.diff(starts, append=len(children))
        children = children[starts]
        open_parents[children] -= times
        frontier = children[open_parents[children] == 0]
        depth += 1
    if done < num_labels:
        raise ValueError(
            f"The hierarchy has a cycle: {' -> '.join(_cycle_labels(edges, open_parents, labels))}. Remove an edge."
        )
    return depths


def _cycle_labels(edges: np.ndarray, open_parents: np.ndarray, labels: Sequence[str]) -> list[str]:
    """Returns the quoted labels of one cycle among the nodes that still have open parents, the first one also last."""
    left = open_parents > 0
    inside = edges[left[edges[:, 0]] & left[edges[:, 1]]]
    a_parent = dict(zip(inside[:, 1].tolist(), inside[:, 0].tolist()))
    node = int(inside[0, 1])
    seen: dict[int, int] = {}
    while node not in seen:
        seen[node] = len(seen)
        node = a_parent[node]
    cycle = [*list(seen)[seen[node] :], node]
    return [repr(labels[i]) for i in reversed(cycle)]
