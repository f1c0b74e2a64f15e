"""The rows of all benchmarks, and the tables made from them: python recipes/benchmarks/results.py

Rows are kept in results.json; results.md is written from it, with the paired bootstrap over test documents of every
method against the best baseline, for which the answers of the runs are read from --cache. --heads prints the tables of
heads.jsonl, of the variants of the heads.
"""

import argparse
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
from scoring import Answers, difference, resampled_scores
from tasks import RESULTS, true_labels

from hcal_hf import Taxonomy

HERE = Path(__file__).parent
PAGE = HERE / "results.md"
PACKAGES = ("hcal-hf", "torch", "transformers", "scikit-learn", "hiclass", "numpy")
COMPARED = ("micro_f1", "macro_f1", "leaf_accuracy", "leaf_macro_f1")
TITLES = {
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "leaf_accuracy": "leaf accuracy",
    "leaf_macro_f1": "leaf macro-F1",
    "hierarchical_f1": "hF1",
    "hvr_raw": "HVR raw",
    "hvr_decoded": "HVR decoded",
}
SIGNIFICANT = 0.05
# What the rows of an ablation are compared with.
FULL_MODEL = "all parts"
SETS = ("micro", "macro", "leaf", "raw")


@dataclass
class Row:
    """One run.

    Attributes:
        dataset, method (`str`): names.
        regime (`str`): frozen, fine-tuned, few-shot or ablation.
        seed (`int`): of the run, and of the sample of training documents.
        ours (`bool`): whether the method is this library's; otherwise it is a baseline.
        metrics (`dict`): percent.
        facts (`dict`): what was chosen on the validation split, processor seconds of training and documents a processor
            second in prediction (`clock` says so where they are of another clock), parameters, threads, device.
        train_size, per_leaf (`int`, *optional*): training documents, of all and of each leaf; all where None.
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
        parts = [self.dataset, self.method, self.regime, self.train_size, self.per_leaf, settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def table(self) -> tuple[str, str, int | None, int | None]:
        """The table that the row belongs to."""
        return self.regime, self.dataset, self.train_size, self.per_leaf

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.table, self.method, self.seed)

    def answers_path(self, cache: Path) -> Path:
        """Where the row's answers are kept."""
        size = "".join(f"-{n}" for n in (self.train_size, self.per_leaf) if n is not None)
        name = f"{self.method}-{self.seed}".replace(" ", "_").replace(",", "")
        return cache / "answers" / f"{self.regime}-{self.dataset}{size}" / f"{name}.npz"


def read(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def write(rows: Iterable[Row], path: Path) -> None:
    """All rows, one a line, in an order that does not depend on when they were run."""
    ordered = sorted(rows, key=lambda row: [str(part) for part in row.key])
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(row)) for row in ordered)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def store(row: Row, answers: Answers, results: Path, cache: Path) -> None:
    """Puts a row in the place of an earlier run of it, and keeps its answers. Several processes may do so at a time."""
    path = row.answers_path(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    packed: dict[str, Any] = {name: np.packbits(getattr(answers, name), axis=1) for name in SETS}
    np.savez_compressed(path, num_labels=answers.micro.shape[1], **packed)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "results.lock"):
        write([*(old for old in read(results) if old.key != row.key), row], results)


def stored_answers(row: Row, cache: Path) -> Answers:
    with np.load(row.answers_path(cache)) as file:
        count = int(file["num_labels"])
        return Answers(*(np.unpackbits(file[name], axis=1, count=count) > 0 for name in SETS))


def methods_of(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.method, []).append(row)
    return found


def mean(rows: list[Row], metric: str) -> float:
    return statistics.mean(row.metrics[metric] for row in rows)


def compare(rows: list[Row], truth: np.ndarray, taxonomy: Taxonomy, cache: Path) -> None:
    """Gives every row of a table the bootstrap of its method against the best of the baselines (of the full model, in
    an ablation), for each metric; the best by its mean on the test split, which is the hardest one to beat. What is stored
    stays where the answers of the best are gone; a method whose own are gone has none."""
    methods = methods_of(rows)
    drawn = {
        name: [resampled_scores(stored_answers(row, cache), truth, taxonomy) for row in own]
        for name, own in methods.items()
        if all(row.answers_path(cache).exists() for row in own)
    }
    references = [name for name, own in methods.items() if not own[0].ours] or [FULL_MODEL] * (FULL_MODEL in methods)
    for metric in (metric for metric in COMPARED if metric in rows[0].metrics and references):
        best = max(references, key=lambda name: mean(methods[name], metric))
        if best not in drawn:
            print(f"{rows[0].table}, {metric}: the bootstrap stays as stored, {cache} has no answers of {best!r}.")
            continue
        for name, own in methods.items():
            for row in own:
                row.against_best_baseline.pop(metric, None)
            if name == best or name not in drawn:
                continue
            found = difference([draw[metric] for draw in drawn[name]], [draw[metric] for draw in drawn[best]])
            gain = round(mean(own, metric) - mean(methods[best], metric), 2)
            for row in own:
                row.against_best_baseline[metric] = {"baseline": best, "difference": gain, **found}


def mean_and_sd(values: list[float], digits: int = 1) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{spread}"


def significant(own: list[Row], metric: str) -> bool:
    found = own[0].against_best_baseline.get(metric)
    return found is not None and found["difference"] > 0 and found["p"] < SIGNIFICANT


def table(rows: list[Row]) -> list[str]:
    """Markdown of one table: mean and standard deviation over seeds, significant gains in bold."""
    metrics = [name for name in TITLES if name in rows[0].metrics]
    depths = sorted(name for name in rows[0].metrics if name.startswith("micro_f1_level_"))
    columns = [TITLES[name] for name in metrics]
    head = [
        "method",
        *columns,
        f"micro-F1 of levels 0 to {len(depths) - 1}",
        "train s",
        "docs/s",
        "parameters",
        "seeds",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    groups = sorted(methods_of(rows).items(), key=lambda pair: (pair[1][0].ours, mean(pair[1], "macro_f1")))
    for name, own in groups:
        cells = []
        for metric in metrics:
            cell = mean_and_sd([row.metrics[metric] for row in own])
            cells.append(f"**{cell}**" if own[0].ours and significant(own, metric) else cell)
        cells.append(" / ".join(f"{mean(own, depth):.1f}" for depth in depths))
        facts = [row.facts for row in own]
        for fact, digits in (("train_seconds", 0), ("documents_per_second", 0), ("parameters", 0)):
            clocks = {found["clock"] for found in facts if "clock" in found and fact != "parameters"}
            cells.append(" ".join([f"{statistics.mean(found[fact] for found in facts):,.{digits}f}", *sorted(clocks)]))
        title = f"**{name}**" if own[0].ours else name
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {len(own)} |")
    return lines


def differences(rows: list[Row]) -> list[str]:
    """Markdown: what our rows are ahead of the best baseline, or an ablation of the full model."""
    metrics = [metric for metric in COMPARED if metric in rows[0].metrics]
    lines = [
        "| method | " + " | ".join(TITLES[metric] for metric in metrics) + " |",
        "|---" * (len(metrics) + 1) + "|",
    ]
    for name, own in methods_of(rows).items():
        found = own[0].against_best_baseline
        if not own[0].ours or not found:
            continue
        cells = []
        for metric in metrics:
            if metric not in found:
                cells.append("")
                continue
            one = found[metric]
            interval = f"{one['difference']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f}), p {one['p']:.3f}"
            cells.append(interval + (f", against {one['baseline']}" if one["baseline"] != FULL_MODEL else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else []


def page(rows: list[Row], not_run: dict[tuple[str, str], str]) -> str:
    """results.md."""
    lines = [(HERE / "results_head.md").read_text(encoding="utf-8").rstrip()]
    tables: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        tables.setdefault(row.table, []).append(row)
    regimes = ("fine-tuned", "frozen", "few-shot", "ablation")
    order = sorted(tables, key=lambda key: (regimes.index(key[0]), key[1], key[2] or 0, key[3] or 0))
    for dataset in dict.fromkeys(key[1] for key in order if key[0] == "few-shot"):
        few = [row for key in order if key[:2] == ("few-shot", dataset) for row in tables[key]]
        lines += [
            "",
            f"## {dataset}, learning curve",
            "",
            "Leaf accuracy by training documents a leaf.",
            "",
            *curve(few),
        ]
    for key in order:
        regime, dataset, size, per_leaf = key
        extra = f", {size:,} training documents" if size else f", {per_leaf} documents a leaf" if per_leaf else ""
        devices = sorted({device_of(row) for row in tables[key]})
        lines += ["", f"## {dataset}, {regime}{extra}", "", f"Run on: {'; '.join(devices)}.", "", *table(tables[key])]
        if found := differences(tables[key]):
            lines += ["", "Difference, 95 % interval and p of the paired bootstrap:", "", *found]
    missing = {key: command for key, command in not_run.items() if not any(k[:2] == key for k in tables)}
    if missing:
        lines += ["", "## Not run", "", "| regime | set | command |", "|---|---|---|"]
        lines += [f"| {regime} | {dataset} | `{command}` |" for (regime, dataset), command in missing.items()]
    return "\n".join(lines) + "\n"


def device_of(row: Row) -> str:
    found = f"{row.facts['device']}, {row.facts['threads']} thread(s)"
    return f"{found}, {row.facts['precision']}" if "precision" in row.facts else found


def curve(rows: list[Row]) -> list[str]:
    """Leaf accuracy of each method by documents a leaf, the best of the fewest documents last."""
    sizes = sorted({row.per_leaf for row in rows if row.per_leaf is not None})
    cells: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        if row.per_leaf is not None:
            cells.setdefault(row.method, {}).setdefault(row.per_leaf, []).append(row)
    lines = ["| method | " + " | ".join(map(str, sizes)) + " | seeds |", "|---" * (len(sizes) + 2) + "|"]
    for name, found in sorted(cells.items(), key=lambda item: mean(item[1][min(item[1])], "leaf_accuracy")):
        own = [found.get(size, []) for size in sizes]
        values = [mean_and_sd([row.metrics["leaf_accuracy"] for row in part]) if part else "" for part in own]
        title = f"**{name}**" if next(iter(found.values()))[0].ours else name
        lines.append(f"| {title} | " + " | ".join(values) + f" | {max(map(len, own))} |")
    return lines


def heads_table(path: Path) -> str:
    """Rows of JSON lines as Markdown, mean and standard deviation over seeds."""
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        size = entry.get("train_size")
        title = entry["dataset"] if size is None else f"{entry['dataset']}, {size:,} training documents"
        rows.setdefault((title, entry["method"]), []).append(entry["metrics"])
    lines = []
    for dataset in dict.fromkeys(name for name, _ in rows):
        columns = list(next(metrics for (name, _), metrics in rows.items() if name == dataset)[0])
        head = ["method", *columns, "seeds"]
        lines += ["", f"### {dataset}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for (name, method), found in rows.items():
            if name == dataset:
                cells = [mean_and_sd([metrics[column] for metrics in found]) for column in columns]
                lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(found)} |")
    return "\n".join(lines)


def expected() -> dict[tuple[str, str], str]:
    """(regime, set) of the fine-tuned tables and the command that fills them."""
    command = "python recipes/benchmarks/finetune.py --data_dir DIR --sets {}"
    return {("fine-tuned", name): command.format(name) for name in ("goemotions", "clinc150", "hwv_part", "cei")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument(
        "--data_dir", type=Path, default=None, help="to repeat the bootstrap; otherwise it is as stored"
    )
    parser.add_argument("--cache", type=Path, default=Path("outputs/benchmarks"))
    parser.add_argument("--heads", action="store_true", help="print the tables of heads.jsonl instead")
    options = parser.parse_args()
    if options.heads:
        print(heads_table(HERE / "heads.jsonl"))
        return
    rows = read(options.results)
    if options.data_dir is not None:
        for name in dict.fromkeys(row.dataset for row in rows):
            taxonomy, truth = true_labels(name, options.data_dir / name)
            for key in dict.fromkeys(row.table for row in rows if row.dataset == name):
                compare([row for row in rows if row.table == key], truth["test"], taxonomy, options.cache)
        write(rows, options.results)
    options.page.write_text(page(rows, expected()), encoding="utf-8")


if __name__ == "__main__":
    main()
