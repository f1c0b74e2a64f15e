"""Measures time and memory of actions, and builds trees to measure them on."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile

from hcal_hf import Taxonomy

Action = Callable[[], Any]
Row = dict[str, Any]


def timed_row(what: str, took: float, **others: Any) -> Row:
    """Builds a row of speed.json.

    Among the other columns, `ratio` is relative to the time of `against`, and `target` is the value aimed at.
    """
    return {"what": what, "seconds": took, **others}


def side_by_side(actions: Mapping[str, Action], rounds: int, warm: int = 1) -> dict[str, tuple[float, float]]:
    """Times several actions in turns.

    All actions run one after the other in each round, so that other work on the machine affects all of them.

    Args:
        actions: the actions by name. The first one is the reference.
        rounds: number of rounds that count.
        warm: number of rounds before them.

    Returns:
        for each action its median seconds and its median ratio to the reference of the same round.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for k in range(warm + rounds):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if k >= warm:
                times[name].append(time.perf_counter() - start)
    first = next(iter(times.values()))
    ratios = {name: [own / reference for own, reference in zip(taken, first)] for name, taken in times.items()}
    return {name: (statistics.median(taken), statistics.median(ratios[name])) for name, taken in times.items()}


class CountsTokens:
    """Wraps an action and counts the tokens, padding included, that it passes to the token embedding."""

    def __init__(self, action: Action, tokenizer: Any):
        self.action, self.vocabulary, self.tokens = action, len(tokenizer), 0

    def __call__(self) -> None:
        self.tokens = 0

        def count(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(module, torch.nn.Embedding) and module.num_embeddings >= self.vocabulary:
                self.tokens += inputs[0].numel()

        handle = register_module_forward_pre_hook(count)
        try:
            self.action()
        finally:
            handle.remove()


def seconds(action: Action, rounds: int) -> float:
    """Returns the median wall-clock seconds of an action, after one warm-up round."""
    return side_by_side({"": action}, rounds)[""][0]


def peak_bytes(action: Action) -> int:
    """Returns the peak memory of tensors in bytes while an action runs, above the memory held before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    with tempfile.TemporaryDirectory() as folder:
        record.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    sizes = [event["args"] for event in sorted(events, key=lambda e: e.get("ts", 0)) if event["name"] == "[memory]"]
    return max(size["Total Allocated"] for size in sizes) - (sizes[0]["Total Allocated"] - sizes[0]["Bytes"])


def resident_bytes() -> int:
    """Returns the resident memory of this process in bytes (Linux only)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * 4096


def fresh_seconds(code: str, rounds: int) -> float:
    """Returns the median processor seconds of a new Python process that runs some code."""
    measured = "import time; {}; print(time.process_time())"
    taken = []
    for _ in range(rounds):
        process = subprocess.run(
            [sys.executable, "-c", measured.format(code)], capture_output=True, text=True, check=True
        )
        taken.append(float(process.stdout.split()[-1]))
    return statistics.median(taken)


def tree_edges(size: int, children: int = 10) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the (parent, child) edges and the roots of a tree in which each node has `children` children."""
    names = [f"label number {i}" for i in range(size)]
    return [(names[i // children], names[i]) for i in range(children, size)], names[:children]


def tree_of_depth(size: int, depth: int) -> Taxonomy:
    """Builds a tree of `size` labels on `depth` levels, with about the same number of children per node."""
    children = 2
    while sum(children**k for k in range(1, depth + 1)) < size:
        children += 1
    return Taxonomy.from_edges(*tree_edges(size, children))


def index_labels(taxonomy: Taxonomy, documents: int) -> torch.Tensor:
    """Returns the node indices of the paths to the last labels, [documents, depth], padded with -100."""
    last = taxonomy.num_labels - 1
    paths = [torch.from_numpy(taxonomy.complete([last - i])) for i in range(documents)]
    return torch.nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-100)
