"""Markdown tables of stored rows, and the pages that hold them.

The text of a page is written manually. Each block between `<!-- NAME -->` and `<!-- end -->` is written by a script from
stored rows.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from result_rows import Row, mean, methods_of

PAGES = Path(__file__).with_name("pages")
END = "<!-- end -->"
# The metrics with a bootstrap.
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
# The row that the other rows of an ablation are compared with.
FULL_MODEL = "all parts"


def filled(text: str, blocks: Mapping[str, str], name: str = "The page") -> str:
    """Returns the text of a page with new content in its blocks.

    Args:
        text: the page.
        blocks: for each block that is replaced, its name and its Markdown.
        name: the page's name, for messages.

    Raises:
        ValueError: if the page has no such block.
    """
    for block, content in blocks.items():
        start = f"<!-- {block} -->"
        before, found, rest = text.partition(start)
        if not found or END not in rest:
            raise ValueError(f"{name} has no place for {start}. Add this line and {END} where the table belongs.")
        text = f"{before}{start}\n{content}\n{END}{rest.split(END, 1)[1]}"
    return text


def write_page(page: Path, blocks: Mapping[str, str]) -> None:
    """Writes new content into the blocks of a page."""
    page.write_text(filled(page.read_text(encoding="utf-8"), blocks, str(page)), encoding="utf-8")


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def mean_and_sd(values: Sequence[float], digits: int = 1) -> str:
    """Formats the mean and, if there are several values, the standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{spread}"


def is_significant(rows: list[Row], metric: str) -> bool:
    """Returns whether a method is significantly better than the best baseline."""
    bootstrap = rows[0].against_best_baseline.get(metric)
    return bootstrap is not None and bootstrap["difference"] > 0 and bootstrap["p"] < SIGNIFICANT


def scores_table(rows: list[Row]) -> list[str]:
    """Returns the table of one data set: mean and standard deviation over seeds, significant gains in bold."""
    metrics = [name for name in TITLES if name in rows[0].metrics]
    depths = sorted(name for name in rows[0].metrics if name.startswith("micro_f1_level_"))
    columns = [
        "method",
        *(TITLES[name] for name in metrics),
        f"micro-F1 of levels 0 to {len(depths) - 1}",
        "train s",
        "docs/s",
        "parameters",
        "seeds",
    ]
    lines = []
    for name, runs in sorted(methods_of(rows).items(), key=lambda item: (item[1][0].ours, mean(item[1], "macro_f1"))):
        cells = [f"**{name}**" if runs[0].ours else name]
        for metric in metrics:
            cell = mean_and_sd([row.metrics[metric] for row in runs])
            cells.append(f"**{cell}**" if runs[0].ours and is_significant(runs, metric) else cell)
        cells.append(" / ".join(f"{mean(runs, depth):.1f}" for depth in depths))
        facts = [row.facts for row in runs]
        for fact in ("train_seconds", "documents_per_second", "parameters"):
            clocks = {own["clock"] for own in facts if "clock" in own and fact != "parameters"}
            cells.append(" ".join([f"{statistics.mean(own[fact] for own in facts):,.0f}", *sorted(clocks)]))
        lines.append([*cells, str(len(runs))])
    return markdown(columns, lines)


def differences_table(rows: list[Row]) -> list[str]:
    """Returns the table of the bootstrap: our rows against the best baseline, or an ablation against the full model.

    Returns an empty list if no row has a bootstrap.
    """
    metrics = [metric for metric in COMPARED if metric in rows[0].metrics]
    lines = []
    for name, runs in methods_of(rows).items():
        bootstraps = runs[0].against_best_baseline
        if not runs[0].ours or not bootstraps:
            continue
        cells = [name]
        for metric in metrics:
            if metric not in bootstraps:
                cells.append("")
                continue
            own = bootstraps[metric]
            interval = f"{own['difference']:+.1f} ({own['low']:+.1f} to {own['high']:+.1f}), p {own['p']:.3f}"
            cells.append(interval + (f", against {own['baseline']}" if own["baseline"] != FULL_MODEL else ""))
        lines.append(cells)
    return markdown(["method", *(TITLES[metric] for metric in metrics)], lines) if lines else []


def device_of(row: Row) -> str:
    """Names the device, the threads and, if it is stored, the precision of a run."""
    device = f"{row.facts['device']}, {row.facts['threads']} thread(s)"
    return f"{device}, {row.facts['precision']}" if "precision" in row.facts else device


def learning_curve(rows: list[Row]) -> list[str]:
    """Returns the table of leaf accuracies by documents per leaf. The method that is best with the fewest is last."""
    sizes = sorted({row.per_leaf for row in rows if row.per_leaf is not None})
    methods: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        if row.per_leaf is not None:
            methods.setdefault(row.method, {}).setdefault(row.per_leaf, []).append(row)
    lines = []
    for name, by_size in sorted(methods.items(), key=lambda item: mean(item[1][min(item[1])], "leaf_accuracy")):
        runs = [by_size.get(size, []) for size in sizes]
        cells = [mean_and_sd([row.metrics["leaf_accuracy"] for row in same]) if same else "" for same in runs]
        title = f"**{name}**" if next(iter(by_size.values()))[0].ours else name
        lines.append([title, *cells, str(max(map(len, runs)))])
    return markdown(["method", *map(str, sizes), "seeds"], lines)


def heads_tables(entries: list[dict[str, Any]]) -> str:
    """Returns a table for each data set of rows/heads.jsonl: mean and standard deviation over seeds."""
    tables: dict[str, dict[str, list[dict[str, float]]]] = {}
    for entry in entries:
        size = entry.get("train_size")
        title = entry["dataset"] if size is None else f"{entry['dataset']}, {size:,} training documents"
        tables.setdefault(title, {}).setdefault(entry["method"], []).append(entry["metrics"])
    lines = []
    for title, methods in tables.items():
        columns = list(next(iter(methods.values()))[0])
        cells = [
            [method, *(mean_and_sd([run[column] for run in runs]) for column in columns), str(len(runs))]
            for method, runs in methods.items()
        ]
        lines += [f"### {title}", "", *markdown(["method", *columns, "seeds"], cells), ""]
    return "\n".join(lines[:-1])


def weighting_tables(entries: list[dict[str, Any]]) -> dict[str, str]:
    """Returns the blocks of weighting.md: one table for each experiment and data set of rows/weighting.jsonl."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(f"{entry['part']} {entry['dataset']}", []).append(entry)
    return {name: weighting_table(group) for name, group in groups.items()}


def weighting_table(entries: list[dict[str, Any]]) -> str:
    """Returns one table of weighters: mean and standard deviation over seeds."""
    runs_of: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        runs_of.setdefault((entry["head"], entry["weighter"]), []).append(entry)
    columns = list(entries[0]["metrics"])
    lines = []
    for (head, weighter), runs in runs_of.items():
        arguments = ", ".join(f"{name} {value}" for name, value in runs[0]["chosen"]["own"].items())
        cells = [
            mean_and_sd([run["metrics"][column] for run in runs], 0 if column == "steps" else 1) for column in columns
        ]
        lines.append([head, weighter, arguments, *cells, str(len(runs))])
    return "\n".join(markdown(["head", "weighter", "chosen", *columns, "seeds"], lines))


def decisions_tables(entries: list[dict[str, Any]]) -> str:
    """Returns a table for each measurement and data set of rows/decisions.jsonl."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["what"], entry["dataset"]), []).append(entry)
    lines = []
    for (measurement, dataset), group in groups.items():
        columns = [name for name in group[0] if name not in ("what", "dataset", "row")]
        lines += [
            f"## {measurement}, {dataset}",
            "",
            f"| | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        lines += [f"| {entry['row']} | {' | '.join(str(entry[column]) for column in columns)} |" for entry in group]
        lines.append("")
    return "\n".join(lines[:-1])
