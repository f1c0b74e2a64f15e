"""How long actions take side by side, what memory they need, and trees to try them on."""

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


def side_by_side(actions: Mapping[str, Action], rounds: int, warm: int = 1) -> dict[str, tuple[float, float]]:
    """Median seconds of each action, and the median over the rounds of its time as a multiple of the first action's in the
    same round: in a round all run, one after the other, so that what else the machine does weighs on all."""
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
    """An action that counts what the embedding of the tokens is given in it, padding included."""

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
    """Median wall-clock seconds of an action, after one round to warm up."""
    return side_by_side({"": action}, rounds)[""][0]


def peak_bytes(action: Action) -> int:
    """The most bytes that tensors hold at one time while an action runs, above what they hold before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    with tempfile.TemporaryDirectory() as folder:
        record.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    sizes = [event["args"] for event in sorted(events, key=lambda e: e.get("ts", 0)) if event["name"] == "[memory]"]
    return max(size["Total Allocated"] for size in sizes) - (sizes[0]["Total Allocated"] - sizes[0]["Bytes"])


def resident_bytes() -> int:
    """Memory of this process that lies in RAM (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def fresh_seconds(code: str, rounds: int) -> float:
    """Median processor seconds of a new Python process that runs some code."""
    measured = "import time; {}; print(time.process_time())"
    taken = []
    for _ in range(rounds):
        found = subprocess.run(
            [sys.executable, "-c", measured.format(code)], capture_output=True, text=True, check=True
        )
        taken.append(float(found.stdout.split()[-1]))
    return statistics.median(taken)


def tree_edges(size: int, children: int = 10) -> tuple[list[tuple[str, str]], list[str]]:
    """(parent, child) labels of a tree whose nodes have `children` children each, and its roots."""
    names = [f"label number {i}" for i in range(size)]
    return [(names[i // children], names[i]) for i in range(children, size)], names[:children]


def tree_of_depth(size: int, depth: int) -> Taxonomy:
    """A tree of `size` labels on `depth` levels, whose nodes have about the same number of children."""
    children = 2
    while sum(children**k for k in range(1, depth + 1)) < size:
        children += 1
    taxonomy = Taxonomy.from_edges(*tree_edges(size, children))
    return taxonomy


def index_labels(taxonomy: Taxonomy, documents: int) -> torch.Tensor:
    """Node indices [documents, depth] of the paths to the last labels, padded with -100."""
    last = taxonomy.num_labels - 1
    paths = [torch.from_numpy(taxonomy.complete([last - i])) for i in range(documents)]
    return torch.nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=-100)
