"""Compares the coherent heads with the best flat classifier of each table of results.md, by documents per leaf.

    python recipes/benchmarks/hierarchy.py

Writes the table of pages/hierarchy.md and the picture docs/assets/gain.png from the rows in rows/results.json.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from result_rows import RESULTS, Row, mean, methods_of, read
from tables import PAGES, markdown, write_page

PAGE = PAGES / "hierarchy.md"
PICTURE = Path(__file__).parents[2] / "docs" / "assets" / "gain.png"
REGIMES = ("frozen", "few-shot", "fine-tuned")
# Beginnings of the names of baselines that do not know the hierarchy.
FLAT = ("softmax over leaves", "logistic regression per label", "nearest documents", "TF-IDF", "flat")


@dataclass(frozen=True)
class Dataset:
    """The size of a data set: training documents, labels, leaves and levels."""

    documents: int
    labels: int
    leaves: int
    levels: int


DATASETS = {
    "clinc150": Dataset(15_000, 160, 150, 2),
    "naics2012": Dataset(13_478, 2_209, 1_065, 5),
    "hwv_part": Dataset(1_335, 1_186, 953, 6),
    "goemotions": Dataset(43_410, 37, 28, 3),
    "cei": Dataset(2_563, 69, 48, 5),
    "debtags": Dataset(7_845, 471, 427, 3),
}


@dataclass
class Comparison:
    """One table of results.md.

    Attributes:
        dataset, regime (`str`): names.
        per_leaf (`float`): training documents per leaf.
        metric (`str`): leaf_accuracy, or micro_f1 if documents have several paths.
        flat, ours (`str`): the flat classifier and our default head that are best on the test split.
        scores (`tuple`): their scores in percent.
        contradictions (`float`): the percent of documents in which the flat baseline contradicts the hierarchy, before
            ancestors are added.
        p (`float`, *optional*): that of the paired bootstrap, if our head was compared with this baseline.
    """

    dataset: str
    regime: str
    per_leaf: float
    metric: str
    flat: str
    ours: str
    scores: tuple[float, float]
    contradictions: float
    p: float | None

    @property
    def gain(self) -> float:
        return self.scores[1] - self.scores[0]


def compare(rows: list[Row]) -> Iterator[Comparison]:
    """Yields a comparison for each table with our default head and a baseline."""
    tables: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.regime in REGIMES and row.dataset in DATASETS and row.train_size is None:
            tables.setdefault(row.table, []).append(row)
    for (regime, dataset, _, per_leaf), group in tables.items():
        methods = methods_of(group)
        flat = [name for name in methods if name.startswith(FLAT)]
        ours = [name for name, runs in methods.items() if runs[0].ours and name.startswith("lookahead")]
        if not flat or not ours:
            continue
        metric = "leaf_accuracy" if "leaf_accuracy" in group[0].metrics else "micro_f1"
        best, own = (max(names, key=lambda name: mean(methods[name], metric)) for names in (flat, ours))
        bootstrap = methods[own][0].against_best_baseline.get(metric, {})
        size = DATASETS[dataset]
        yield Comparison(
            dataset,
            regime,
            per_leaf or size.documents / size.leaves,
            metric,
            best,
            own,
            (mean(methods[best], metric), mean(methods[own], metric)),
            max(mean(methods[name], "hvr_raw") for name in flat if name.split(",")[0] == best.split(",")[0]),
            bootstrap["p"] if bootstrap.get("baseline") == best else None,
        )


def table(comparisons: list[Comparison]) -> str:
    """Returns the table of the page, by data set and by documents per leaf."""
    lines = []
    for c in sorted(
        comparisons, key=lambda c: (list(DATASETS).index(c.dataset), c.regime == "fine-tuned", c.per_leaf)
    ):
        size = DATASETS[c.dataset]
        lines.append(
            [
                f"{c.dataset}: {size.labels:,} labels, {size.levels} levels",
                f"{c.per_leaf:,.0f}" if c.per_leaf >= 2 else f"{c.per_leaf:.1f}",
                "fine-tuned" if c.regime == "fine-tuned" else "frozen",
                "leaf accuracy" if c.metric == "leaf_accuracy" else "micro-F1",
                f"{c.scores[0]:.1f} ({c.flat})",
                f"{c.contradictions:.0f}",
                f"{c.scores[1]:.1f} ({c.ours})",
                f"{c.gain:+.1f}" + ("" if c.p is None else f", p {c.p:.3f}"),
            ]
        )
    columns = ["data set", "documents per leaf", "encoder", "metric", "best flat classifier", "its contradictions, %",
               "coherent head", "gain"]  # fmt: skip
    return "\n".join(markdown(columns, lines))


def draw(comparisons: list[Comparison]) -> None:
    """Draws the gain by documents per leaf, a line per data set."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in DATASETS:
        for is_tuned, marker in ((False, "o"), (True, "s")):
            points = sorted(
                (c.per_leaf, c.gain)
                for c in comparisons
                if c.dataset == name and (c.regime == "fine-tuned") == is_tuned
            )
            if points:
                color = f"C{list(DATASETS).index(name)}"
                label = f"{name}, {'fine-tuned' if is_tuned else 'frozen'}"
                axes.plot(
                    *zip(*points), marker=marker, color=color, label=label, fillstyle="none" if is_tuned else "full"
                )
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("training documents per leaf")
    axes.set_ylabel("gain over the best flat classifier, points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=120)


def tables(rows: list[Row]) -> dict[str, str]:
    """Makes the block of the page."""
    return {"gains": table(list(compare(rows)))}


def main() -> None:
    rows = read(RESULTS)
    write_page(PAGE, tables(rows))
    draw(list(compare(rows)))


if __name__ == "__main__":
    main()
