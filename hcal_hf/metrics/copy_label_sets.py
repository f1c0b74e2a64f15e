"""Writes `hvr/label_sets.py` as a copy of `hierarchical_f1/label_sets.py`.

The folder of an `evaluate` module is loaded and published alone, so each needs its own copy. After a change, run
`python hcal_hf/metrics/copy_label_sets.py`.
"""

from pathlib import Path

SOURCE = Path(__file__).parent / "hierarchical_f1" / "label_sets.py"
COPY = Path(__file__).parent / "hvr" / "label_sets.py"
HEADER = "# Copied from hierarchical_f1/label_sets.py by copy_label_sets.py. Edit the original.\n"


def copied_text() -> str:
    """Returns the text that the copy must have."""
    return HEADER + SOURCE.read_text(encoding="utf-8")


if __name__ == "__main__":
    COPY.write_text(copied_text(), encoding="utf-8", newline="\n")
