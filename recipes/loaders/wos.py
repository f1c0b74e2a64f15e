"""Converts Web of Science, WOS-46985.

    python recipes/loaders/wos.py SOURCE_DIR OUT_DIR

Reads `Meta-data/Data.txt` (or `Data.txt`) of the Web of Science Dataset of HDLTex: a header, and one tab-separated
line per document with Y1, Y2, Y, Domain, area, keywords, Abstract. If your copy has Data.xlsx instead, save it as
tab-separated text in UTF-8.

Labels (domain > area) and split are those of HiAGM's preprocessing, which the field follows: numpy's shuffle with
seed 7, then scikit-learn's `train_test_split` twice with random_state 0: 30,070 / 7,518 / 9,397. If an area shares
its code (Y1, Y2) with a more frequent area of its domain that is earlier in the file, it is replaced by that area,
which fixes a few misspelt areas. The text is the unchanged abstract. HiAGM removes stop words and punctuation.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from shared import Writer, bad_line, find_file, main, read_lines
from sklearn.model_selection import train_test_split

from hcal_hf import Taxonomy

COLUMNS = ["y1", "y2", "y", "domain", "area", "keywords", "abstract"]
DOCUMENTS = 46_985
PUBLISHED = {"train": 30_070, "validation": 7_518, "test": 9_397}


class Document(NamedTuple):
    """A row of Data.txt. The code is (Y1, Y2)."""

    code: tuple[str, str]
    domain: str
    area: str
    text: str


def read(path: Path, encoding: str) -> list[Document]:
    """Reads the documents of Data.txt in order."""
    documents = []
    for number, line in read_lines(path, encoding):
        cells = [cell.strip() for cell in line.split("\t")]
        if number == 1:
            if [cell.lower() for cell in cells] != COLUMNS:
                raise bad_line(path, 1, f"the header must be {COLUMNS} between tabs, got {cells}.")
            continue
        if len(cells) != len(COLUMNS):
            raise bad_line(path, number, f"{len(COLUMNS)} cells between tabs are needed, got {len(cells)}.")
        first, second, _, domain, area, _, abstract = cells
        if not domain or not area:
            raise bad_line(path, number, f"domain and area must be given, got {domain!r} and {area!r}.")
        inner = abstract[1:-1]
        if abstract == f'"{inner}"' and '"' not in inner.replace('""', ""):  # quoted by a spreadsheet
            abstract = inner.replace('""', '"')
        documents.append(Document((first, second), domain, area, abstract))
    return documents


def areas_of(documents: list[Document]) -> list[str]:
    """Returns the area of each document, after HiAGM's rule for areas that share a code."""
    times = Counter((document.domain, document.area) for document in documents)
    seen: dict[tuple[str, str], list[str]] = {}
    areas = []
    for document in documents:
        same_code = seen.setdefault(document.code, [])
        if document.area not in same_code:
            same_code.append(document.area)
        own = times[document.domain, document.area]
        greater = (area for area in same_code if times[document.domain, area] > own)
        areas.append(next(greater, document.area))
    return areas


def split_of(documents: int) -> list[str]:
    """Returns the split of each document by its position in the file."""
    order = list(range(documents))
    np.random.RandomState(7).shuffle(order)  # numpy's old generator, which made the published split
    rest, test = train_test_split(order, test_size=0.2, random_state=0)
    train, validation = train_test_split(rest, test_size=0.2, random_state=0)
    splits = [""] * documents
    for split, rows in (("train", train), ("validation", validation), ("test", test)):
        for row in rows:
            splits[row] = split
    return splits


def load(source: Path, output: Path, encoding: str = "utf-8-sig") -> None:
    """Converts the data set in SOURCE_DIR and writes it to OUT_DIR.

    Raises:
        FileNotFoundError: without Data.txt.
        ValueError: for a malformed line, or if the number of documents differs from the published split.
    """
    path = find_file(source, ("Meta-data/Data.txt", "Data.txt"), "the documents of the Web of Science Dataset")
    documents = read(path, encoding)
    if len(documents) != DOCUMENTS:
        raise ValueError(
            f"{path} has {len(documents):,} documents; the published split is of {DOCUMENTS:,}, by their place in the "
            "file: give the whole Data.txt of the Meta-data folder."
        )
    areas = areas_of(documents)
    paths = [(document.domain, area) for document, area in zip(documents, areas)]
    taxonomy = Taxonomy.from_paths(sorted(set(paths)))
    with Writer(output, taxonomy, PUBLISHED) as writer:
        for document, area, path_, split in zip(documents, areas, paths, split_of(len(documents))):
            writer.add(split, document.text, taxonomy.given_nodes([path_]))
            writer.note("documents whose area is that of a more frequent one with its code", area != document.area)


if __name__ == "__main__":
    main(
        load, __doc__, options={"encoding": {"default": "utf-8-sig", "help": "encoding of Data.txt, by default UTF-8"}}
    )
