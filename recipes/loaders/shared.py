"""Reads files with errors that name file and line, and writes the format of the recipes.

A loader writes `train`, `validation` and `test.jsonl.gz` with rows {"text": str, "labels": [[root, ..., node], ...]},
and `taxonomy.json`, {"edges": [[parent, child], ...], "roots": [label, ...]}.
"""

import argparse
import gzip
import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

import numpy as np

from hcal_hf import Taxonomy

SPLITS = ("train", "validation", "test")
_ARCHIVES = (".zip", ".tgz", ".tar.gz", ".tar.xz", ".tar")


def bad_line(path: Path | str, line: int, problem: str) -> ValueError:
    """Builds the error for one line of a file."""
    return ValueError(f"{path}, line {line}: {problem}")


def find_file(folder: Path, names: Iterable[str], what: str) -> Path:
    """Returns the first of `names` that is a file in the folder, with or without .gz.

    Raises:
        FileNotFoundError: if there is none. The message describes the file.
    """
    names = list(names)
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise FileNotFoundError(f"{folder} has no {' or '.join(names)} ({what}).")


def read_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """Yields the (line number from 1, line without its end) of a text file, gzipped or not.

    Raises:
        ValueError: if the file does not have the encoding.
    """
    number = 0
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding=encoding) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                yield number, line.rstrip("\n")
        except UnicodeDecodeError as problem:
            raise bad_line(
                path, number + 1, f"{problem}; save the file as UTF-8, or give its --encoding where the loader has one"
            ) from problem


def documents_in(folder: Path, names: Container[str]) -> Iterator[tuple[str, bytes, str]]:
    """Yields the (file name, content, location) of the files with given names below a folder, also in zip and tar files.

    The files are in the order of their names. Files in a folder come before those in its sub-folders.
    """
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(place, name)
            if name in names:
                yield name, path.read_bytes(), str(path)
            elif name.endswith(".zip"):
                with zipfile.ZipFile(path) as zipped:
                    for member in zipped.namelist():
                        if (inner := PurePosixPath(member).name) in names:
                            yield inner, zipped.read(member), f"{path}/{member}"
            elif name.endswith(_ARCHIVES):
                with tarfile.open(path) as tarred:
                    for entry in tarred:
                        inner = PurePosixPath(entry.name).name
                        if inner in names and (content := tarred.extractfile(entry)) is not None:
                            yield inner, content.read(), f"{path}/{entry.name}"


def unique_names(titles: Mapping[str, str]) -> dict[str, str]:
    """Returns a name for each code: its title, followed by the code if several codes share the title."""
    times = Counter(titles.values())
    return {code: title if times[title] == 1 else f"{title} ({code})" for code, title in titles.items()}


class Writer(AbstractContextManager["Writer"]):
    """Writes the splits and the taxonomy, and counts the documents and labels that are written, added or dropped.

    The files appear when the `with` block ends without an error, so a failed run leaves none behind.

    Args:
        output: the folder. It is created if it is missing.
        taxonomy ([`hcal_hf.Taxonomy`]): the hierarchy of all labels.
        published: the published number of documents of each split. A difference is reported.
        only_used: leave out labels from `taxonomy.json` if no document has them or a label below them.
        extra: more entries of `taxonomy.json`, such as the codes of the names.
    """

    def __init__(
        self,
        output: Path,
        taxonomy: Taxonomy,
        published: Mapping[str, int],
        only_used: bool = False,
        extra: Mapping[str, Any] | None = None,
    ):
        self.output, self.taxonomy, self.published = output, taxonomy, published
        self.only_used, self.extra = only_used, dict(extra or {})
        self.written: Counter[str] = Counter()
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.notes: Counter[str] = Counter()
        self._times = np.zeros(taxonomy.num_labels, dtype=np.int64)
        output.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, IO[str]] = {}
        for split in SPLITS:
            others = [path.name for path in output.glob(f"{split}.*") if path.name != f"{split}.jsonl.gz"]
            others = [name for name in others if not name.endswith(".part")]
            if others:
                raise ValueError(f"{output} already has {others[0]}: give a folder of its own for {split}.jsonl.gz.")
        for split in SPLITS:
            # Without a timestamp the same data gives the same bytes.
            zipped = gzip.GzipFile(self._part(split), "wb", compresslevel=6, mtime=0)
            self._files[split] = io.TextIOWrapper(zipped, encoding="utf-8")

    def _part(self, split: str) -> Path:
        return self.output / f"{split}.jsonl.gz.part"

    def add(self, split: str, text: str, nodes: Iterable[int]) -> None:
        """Writes a document with its labels and their ancestors. Drops and counts it if it has no text or no label.

        Args:
            split: one of `SPLITS`.
            text: the text. Surrounding white space is removed.
            nodes: the indices of its labels.
        """
        labels = set(nodes)
        text = text.strip()
        if not text or not labels:
            self.drop(split, "no text" if not text else "no label")
            return
        complete = self.taxonomy.complete(labels)
        self.notes["labels added as ancestors of others"] += len(complete) - len(labels)
        self._times[complete] += 1
        row = {"text": text, "labels": self.taxonomy.decode(complete)}
        self._files[split].write(json.dumps(row, ensure_ascii=False) + "\n")
        self.written[split] += 1

    def drop(self, split: str, reason: str) -> None:
        """Counts a dropped document."""
        self.dropped[split, reason] += 1

    def note(self, what: str, times: int = 1) -> None:
        """Counts something else that the summary reports."""
        self.notes[what] += times

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        empty = [split for split in SPLITS if not self.written[split]]
        if kind is not None or empty:
            for split in SPLITS:
                self._part(split).unlink()
            if kind is None:
                reasons = {reason: times for (split, reason), times in self.dropped.items() if split in empty}
                raise ValueError(
                    f"No document for {', '.join(empty)} (dropped: {reasons or 'none'}): nothing is written."
                )
            return
        for split in SPLITS:
            self._part(split).replace(self.output / f"{split}.jsonl.gz")
        labels, edges = self.taxonomy.labels, self.taxonomy.edges
        kept = self._times > 0 if self.only_used else np.ones(len(labels), dtype=bool)
        roots = kept & (self.taxonomy.depths == 0)
        content = {
            "edges": [[labels[parent], labels[child]] for parent, child in edges[kept[edges[:, 1]]].tolist()],
            "roots": [labels[node] for node in np.flatnonzero(roots)],
            **self.extra,
        }
        (self.output / "taxonomy.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        print(self.summary())

    def summary(self) -> str:
        """Returns a report of the documents and labels that were written and dropped."""
        lines = []
        for split in SPLITS:
            line = f"{split}: {self.written[split]:,} documents"
            reasons = {reason: times for (of, reason), times in self.dropped.items() if of == split}
            for reason, times in sorted(reasons.items()):
                line += f"; {times:,} dropped ({reason})"
            lines.append(line)
            if self.written[split] != self.published[split]:
                lines.append(
                    f"  warning: {self.published[split]:,} were published; results on {self.written[split]:,} are not "
                    "comparable with published ones"
                )
        unused = int((self._times == 0).sum())
        sizes = [level.stop - level.start for level in self.taxonomy.levels]
        lines.append(f"taxonomy: {self.taxonomy.num_labels:,} labels, by level {sizes}")
        if unused:
            lines.append(f"  {unused:,} of them occur in no document" + (", left out" if self.only_used else ""))
        lines += [f"{what}: {times:,}" for what, times in self.notes.items() if times]
        return "\n".join(lines)


def main(
    load: Callable[..., None],
    description: str | None,
    argv: list[str] | None = None,
    options: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Runs a loader from the command line: SOURCE_DIR OUT_DIR and its own options. Prints only the message of an error."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source_dir", type=Path, help="folder of the data set as published")
    parser.add_argument("out_dir", type=Path, help="folder for train, validation, test and taxonomy")
    for name, settings in (options or {}).items():
        parser.add_argument(f"--{name}", **settings)
    arguments = vars(parser.parse_args(argv))
    source, output = arguments.pop("source_dir"), arguments.pop("out_dir")
    try:
        if not source.is_dir():
            raise FileNotFoundError(f"{source} is no folder.")
        load(source, output, **arguments)
    except (ValueError, OSError, tarfile.TarError, zipfile.BadZipFile) as problem:
        raise SystemExit(f"error: {problem}") from problem
