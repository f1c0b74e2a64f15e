"""Converts the Blurb Genre Collection, English.

    python recipes/loaders/bgc.py SOURCE_DIR OUT_DIR

Reads `BlurbGenreCollection_EN_{train,dev,test}.txt` and `hierarchy.txt` of BlurbGenreCollection-EN. The text files
are lists of <book> elements with <body> and, within <topics>, the genres of level n as <dn>. They are not well-formed
XML (bare "&"). hierarchy.txt has a line "parent<tab>child" for each edge, and a line with one name for a genre
without children or parents. The split is the published one: 58,715 / 14,785 / 18,394. The text is the blurb, <body>.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from shared import Writer, bad_line, find_file, main, read_lines

from hcal_hf import Taxonomy

FILES = {"train": "train", "validation": "dev", "test": "test"}
PUBLISHED = {"train": 58_715, "validation": 14_785, "test": 18_394}


class Book(NamedTuple):
    """A book, with the line that it starts in."""

    line: int
    text: str
    genres: list[tuple[int, str]]  # (level, name)


class _Reader(HTMLParser):
    """Collects the books from the text that it is fed. HTMLParser accepts bare "&" and "<" as text."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.path = path
        self.books: list[Book] = []
        self._start: int | None = None
        self._open: list[str] = []
        self._texts: list[str] = []
        self._bodies: list[str] = []
        self._genres: list[tuple[int, str]] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "book":
            if self._start is not None:
                raise bad_line(self.path, self.getpos()[0], f"<book> within the book of line {self._start}.")
            self._start = self.getpos()[0]
            self._bodies, self._genres = [], []
        elif tag == "body" or (re.fullmatch(r"d\d", tag) and "topics" in self._open):
            self._texts = []
            self._open.append(tag)
        elif tag == "topics":
            self._open.append(tag)

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "book":
            self._end_book()
        elif self._open and self._open[-1] == tag:
            self._open.pop()
            text = " ".join("".join(self._texts).split())
            if tag == "body":
                self._bodies.append(text)
            elif tag != "topics":
                self._genres.append((int(tag[1:]), text))
        elif tag in ("body", "topics"):
            raise bad_line(self.path, self.getpos()[0], f"</{tag}> closes nothing (open: {self._open or 'none'}).")

    def _end_book(self) -> None:
        line = self.getpos()[0]
        if self._start is None:
            raise bad_line(self.path, line, "</book> without <book>.")
        if self._open:
            raise bad_line(self.path, line, f"<{self._open[-1]}> of the book of line {self._start} is not closed.")
        if len(self._bodies) != 1:
            raise bad_line(self.path, self._start, f"a book needs one <body>, this has {len(self._bodies)}.")
        self.books.append(Book(self._start, self._bodies[0], self._genres))
        self._start = None

    def end(self) -> None:
        """Raises ValueError if the last book is not closed."""
        self.close()
        if self._start is not None:
            raise bad_line(self.path, self._start, "<book> is not closed before the end of the file.")


def read_books(path: Path) -> Iterator[Book]:
    """Reads the books of a file in order."""
    reader = _Reader(path)
    for _, line in read_lines(path):
        reader.feed(line + "\n")
        yield from reader.books
        reader.books.clear()
    reader.end()
    yield from reader.books


def read_hierarchy(path: Path) -> Taxonomy:
    """Reads the hierarchy of genres."""
    edges, single = [], []
    for number, line in read_lines(path):
        names = [name.strip() for name in line.split("\t") if name.strip()]
        if len(names) > 2:
            raise bad_line(path, number, f"one genre, or a parent and a child between tabs, are needed, got {names}.")
        if len(names) == 2:
            edges.append((names[0], names[1]))
        else:
            single += names
    edges = list(dict.fromkeys(edges))
    children = {child for _, child in edges}
    return Taxonomy.from_edges(edges, roots=[name for name in dict.fromkeys(single) if name not in children])


def load(source: Path, output: Path) -> None:
    """Converts the data set in SOURCE_DIR and writes it to OUT_DIR.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a malformed book, or a genre that is not in hierarchy.txt.
    """
    taxonomy = read_hierarchy(find_file(source, ("hierarchy.txt",), "the hierarchy of genres"))
    paths = {
        split: find_file(source, (f"BlurbGenreCollection_EN_{name}.txt",), f"the books of the {name} split")
        for split, name in FILES.items()
    }
    with Writer(output, taxonomy, PUBLISHED) as writer:
        for split, path in paths.items():
            for book in read_books(path):
                try:
                    nodes = [taxonomy.index(name) for _, name in book.genres]
                except ValueError as problem:
                    raise bad_line(path, book.line, f"{problem} (not in hierarchy.txt)") from problem
                writer.add(split, book.text, nodes)
                moved = sum(taxonomy.depths[node] != level for node, (level, _) in zip(nodes, book.genres))
                writer.note("genres on another level than in hierarchy.txt, which counts", moved)


if __name__ == "__main__":
    main(load, __doc__)
