"""Measures the commands from a table to predictions with up to 100,000 labels: time and memory of each.

    python recipes/benchmarks/scale.py --encoder ENCODER --labels 1000 10000 100000
    python recipes/benchmarks/scale.py --encoder ENCODER --data DIR
    python recipes/benchmarks/scale.py --tables

With --labels, the hierarchy is made up: a tree of 5 levels with so many labels, whose names are pairs of words, and 4,000
training, 500 validation and 500 test documents, which repeat words of the names on their path. With --data, it is the
folder of a real data set. Each command is a process of its own. Rows are stored in rows/scale.jsonl, and the table of
pages/scale.md is written from them: processor seconds, and the largest resident memory.
"""

import argparse
import csv
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from result_rows import ROWS, append_line, read_lines
from tables import PAGES, markdown, write_page

RESULTS, PAGE = ROWS / "scale.jsonl", PAGES / "scale.md"
DEPTH = 5
DOCUMENTS = {"train": 4000, "validation": 500, "test": 500}
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def made_up_tree(number: int) -> list[list[str]]:
    """Returns the path of each of `number` labels in a tree of 5 levels with equal numbers of children."""
    words = [a + b + c + d for a in CONSONANTS for b in VOWELS for c in CONSONANTS for d in VOWELS]
    random.Random(0).shuffle(words)
    width = next(width for width in range(2, number) if sum(width ** (d + 1) for d in range(DEPTH)) >= number)
    paths: list[list[str]] = []
    last: list[list[str]] = [[]]
    for _ in range(DEPTH):
        level = []
        for parent in last:
            for _ in range(width):
                if len(paths) == number:
                    return paths
                i = len(paths)
                level.append([*parent, f"{words[i % len(words)]} {words[(i // len(words) + 7 * i) % len(words)]}"])
                paths.append(level[-1])
        last = level
    return paths


def write_made_up(folder: Path, number: int) -> None:
    """Writes the hierarchy and the splits of a made-up task."""
    paths = made_up_tree(number)
    with_children = {tuple(path[:-1]) for path in paths}
    leaves = [path for path in paths if tuple(path) not in with_children]
    with open(folder / "taxonomy.txt", "w", encoding="utf-8") as file:
        file.writelines(" > ".join(path) + "\n" for path in paths)
    draw = random.Random(1)
    for split, size in DOCUMENTS.items():
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for _ in range(size):
                path = draw.choice(leaves)
                words = [word for name in path for word in name.split()]
                rows.writerow([" ".join(draw.sample(words, 5)), " > ".join(path)])


def write_real(folder: Path, source: Path) -> None:
    """Writes the hierarchy and the splits of a data set with one path per document as tables."""
    (folder / "taxonomy.json").write_text((source / "taxonomy.json").read_text(encoding="utf-8"), encoding="utf-8")
    for split in DOCUMENTS:
        with (
            gzip.open(source / f"{split}.jsonl.gz", "rt", encoding="utf-8") as rows,
            open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file,
        ):
            table = csv.writer(file)
            table.writerow(["text", "label"])
            table.writerows([row["text"], row["labels"][0][-1]] for row in map(json.loads, rows))


def commands(folder: Path, encoder: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and the arguments of each command of `hcal`."""
    taxonomy = next(folder.glob("taxonomy.*"))
    model, test = str(folder / "model"), str(folder / "test.csv")
    columns = ["--text", "text", "--labels", "label", "--separator", " > ", "--taxonomy", str(taxonomy)]
    data = folder / "data"
    data.mkdir()
    for split in DOCUMENTS:
        (data / f"{split}.csv").symlink_to(folder / f"{split}.csv")
    yield "check the hierarchy", ["taxonomy", "check", str(taxonomy)]
    yield (
        "train the head on frozen features, tune, report",
        ["train", str(data), *columns, "--encoder", encoder, "--regimes", "frozen", "--output-dir", model],
    )
    yield "load and inspect", ["inspect", model]
    yield "evaluate the test documents", ["evaluate", model, test]
    yield "predict the best paths", ["predict", model, test, "--out", str(folder / "predictions.csv")]
    yield "predict the 3 best labels of each level", [
        "predict", model, test, "--out", str(folder / "best.csv"), "--top-k", "3",
    ]  # fmt: skip
    yield "export as ONNX, and compare", ["export", model, str(folder / "onnx")]


def run(arguments: list[str], threads: int) -> dict[str, Any]:
    """Runs a command of `hcal` and returns its times and its largest memory.

    Raises:
        SystemExit: if the command fails.
    """
    code = "from hcal_hf.commands.main import main; raise SystemExit(main())"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"hcal {' '.join(arguments)} failed:\n{log.read()[-3000:]}")
    return {
        "seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "elapsed": round(time.perf_counter() - started, 1),
        "gib": round(usage.ru_maxrss / 2**20, 2),
    }


def measure(name: str, labels: int, folder: Path, options: argparse.Namespace) -> None:
    """Runs all commands on the files of a folder and stores a row for each."""
    for command, arguments in commands(folder, options.encoder):
        append_line(RESULTS, {"set": name, "labels": labels, "command": command, **run(arguments, options.threads)})


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Makes the table of the page: a line per command, a column per hierarchy."""
    sets = list(dict.fromkeys((row["labels"], row["set"]) for row in rows))
    lines = []
    for command in dict.fromkeys(row["command"] for row in rows):
        cells = []
        for labels, name in sorted(sets):
            found = [r for r in rows if (r["labels"], r["set"], r["command"]) == (labels, name, command)]
            cells.append(f"{found[-1]['seconds']:,.0f} s, {found[-1]['gib']:.1f} GiB" if found else "")
        lines.append([command, *cells])
    return {
        "commands": "\n".join(markdown(["command", *(f"{name}, {n:,} labels" for n, name in sorted(sets))], lines))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="only write the table of the page")
    if "--tables" in sys.argv:
        write_page(PAGE, tables(read_lines(RESULTS)))
        return
    parser.add_argument("--encoder", required=True, help="name on the Hub or folder")
    parser.add_argument("--labels", type=int, nargs="*", default=[], help="sizes of made-up hierarchies")
    parser.add_argument("--data", type=Path, help="folder of a real data set")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for number in options.labels:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            write_made_up(Path(folder), number)
            measure("made up", number, Path(folder), options)
    if options.data:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            write_real(Path(folder), options.data)
            labels = len(
                {
                    label
                    for edge in json.loads((Path(folder) / "taxonomy.json").read_text(encoding="utf-8"))["edges"]
                    for label in edge
                }
            )
            measure(options.data.name, labels, Path(folder), options)


if __name__ == "__main__":
    main()
