"""Draws the picture of the README from rows/results.json: python recipes/benchmarks/readme_picture.py"""

import json
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "assets" / "hwv_part.png"
# Method in the rows -> its name in the picture.
METHODS = {
    "lookahead_softmax, linear": "hcal_hf",
    "logistic regression per label, ancestors closed": "logistic regression per label",
    "one softmax per level, best path": "softmax per level",
    "conditional logistic regression": "conditional logistic regression",
    "hiclass, local classifier per parent": "hiclass",
    "softmax over leaves": "softmax over leaves",
}


def main() -> None:
    rows = json.loads((HERE / "rows" / "results.json").read_text(encoding="utf-8"))
    scores = {
        row["method"]: row["metrics"]
        for row in rows
        if row["dataset"] == "hwv_part" and row["regime"] == "frozen" and row["method"] in METHODS
    }
    names = sorted(METHODS, key=lambda name: scores[name]["leaf_accuracy"])
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.subplots()
    values = [scores[name]["leaf_accuracy"] for name in names]
    colors = ["#00796b" if METHODS[name] == "hcal_hf" else "#b0bec5" for name in names]
    bars = axes.barh([METHODS[name] for name in names], values, color=colors)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlim(0, 58)
    axes.set_xlabel("documents with the right end label, percent of the test split")
    axes.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
