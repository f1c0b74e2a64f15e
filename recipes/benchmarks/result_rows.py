"""Stored rows: one per run, with its metrics, its settings and the label sets that the bootstrap needs."""

import hashlib
import json
import platform
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from scoring import LabelSets

ROWS = Path(__file__).with_name("rows")
RESULTS = ROWS / "results.json"
PACKAGES = ("hcal-hf", "torch", "transformers", "scikit-learn", "hiclass", "numpy")
# The label sets of a run, stored as packed bits.
LABEL_SETS = ("micro", "macro", "leaf", "raw")


@dataclass
class Row:
    """One run.

    Attributes:
        dataset, method (`str`): names.
        regime (`str`): frozen, fine-tuned, few-shot or ablation.
        seed (`int`): seed of the run and of the sample of training documents.
        ours (`bool`): whether the method belongs to this library. Otherwise it is a baseline.
        metrics (`dict`): in percent.
        facts (`dict`): the setting chosen on the validation split, processor seconds of training, documents per processor
            second in prediction, parameters, threads and device. `clock` is present if another clock was used.
        train_size, per_leaf (`int`, *optional*): number of training documents, in total or per leaf. None means all.
        versions (`dict`): versions of Python and of the packages in `PACKAGES`.
        config_hash (`str`): identifies the settings of the run.
        against_best_baseline (`dict`): the paired bootstrap for each metric, added by results.py.
    """

    dataset: str
    method: str
    regime: str
    seed: int
    ours: bool
    metrics: dict[str, float]
    facts: dict[str, Any]
    train_size: int | None = None
    per_leaf: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    config_hash: str = ""
    against_best_baseline: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.versions = self.versions or {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        }
        self.config_hash = self.config_hash or self._hash()

    def _hash(self) -> str:
        measured = {"train_seconds", "documents_per_second", "clock"}
        settings = {name: value for name, value in self.facts.items() if name not in measured}
        identity = [self.dataset, self.method, self.regime, self.train_size, self.per_leaf, settings]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def table(self) -> tuple[str, str, int | None, int | None]:
        """Identifies the table that the row belongs to."""
        return self.regime, self.dataset, self.train_size, self.per_leaf

    @property
    def key(self) -> tuple[Any, ...]:
        """Identifies the run: a rerun has the same key."""
        return (*self.table, self.method, self.seed)

    def label_sets_path(self, cache: Path) -> Path:
        """Returns the file of the row's label sets."""
        size = "".join(f"-{n}" for n in (self.train_size, self.per_leaf) if n is not None)
        name = f"{self.method}-{self.seed}".replace(" ", "_").replace(",", "")
        return cache / "answers" / f"{self.regime}-{self.dataset}{size}" / f"{name}.npz"


def read(path: Path) -> list[Row]:
    """Reads all rows of a JSON file. Returns an empty list if the file does not exist."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def write(rows: Iterable[Row], path: Path) -> None:
    """Writes all rows, one per line, in an order that does not depend on when they were run."""
    ordered = sorted(rows, key=lambda row: [str(value) for value in row.key])
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(row)) for row in ordered)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def store(row: Row, label_sets: LabelSets, results: Path, cache: Path) -> None:
    """Stores a row and its label sets. Replaces an earlier run of the same row.

    Several processes may store rows at the same time.
    """
    path = row.label_sets_path(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    packed: dict[str, Any] = {name: np.packbits(getattr(label_sets, name), axis=1) for name in LABEL_SETS}
    np.savez_compressed(path, num_labels=label_sets.micro.shape[1], **packed)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "results.lock"):
        write([*(old for old in read(results) if old.key != row.key), row], results)


def stored_label_sets(row: Row, cache: Path) -> LabelSets:
    """Reads the label sets of a row."""
    with np.load(row.label_sets_path(cache)) as file:
        count = int(file["num_labels"])
        return LabelSets(*(np.unpackbits(file[name], axis=1, count=count) > 0 for name in LABEL_SETS))


def methods_of(rows: list[Row]) -> dict[str, list[Row]]:
    """Groups rows by their method."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    return groups


def mean(rows: list[Row], metric: str) -> float:
    """Returns the mean of a metric over rows."""
    return statistics.mean(row.metrics[metric] for row in rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a file with JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Appends an object to a file with JSON lines and prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)
