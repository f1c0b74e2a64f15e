"""Converts the New York Times Annotated Corpus.

    python recipes/loaders/nyt.py SOURCE_DIR OUT_DIR --lists DIR

Reads the corpus (LDC2008T19) as it is distributed, `data/<year>/<month>.tgz`, or unpacked in any layout. Articles are
found by their file names, `<id>.xml`. The split and the labels that the field uses are lists in HiAGM's repository.
Put them into --lists (SOURCE_DIR by default):

    idnewnyt_train.json, idnewnyt_val.json, idnewnyt_test.json    one "Nytimes/<year>/<id>.xml" per line
    nyt_label.vocab                                               one "Top/News/Sports" per line, and "Root"

Labels are the taxonomic classifiers of an article ("Top/News/Sports/Hockey") that are in the list, without "Top".
Classifiers of fewer than three steps are ignored, as in HiAGM. The text is the paragraphs of the full text, or all
paragraphs if an article has no full text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from shared import Writer, bad_line, documents_in, find_file, main, read_lines

from hcal_hf import Taxonomy

FILES = {"train": "train", "validation": "val", "test": "test"}
PUBLISHED = {"train": 23_345, "validation": 5_834, "test": 7_292}
_LISTED = re.compile(r"(?:.*/)?\d{4}/(\d+\.xml)")
_TOP = "Top"
# Shorter classifiers name a section and not a topic ("Top/News").
_MIN_STEPS = 3


def read_list(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the (line number, file name) of each article of a split."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        match = _LISTED.fullmatch(line.strip())
        if match is None:
            raise bad_line(path, number, f'"Nytimes/<year>/<id>.xml" is needed, got {line.strip()!r}.')
        yield number, match[1]


def read_labels(path: Path) -> Taxonomy:
    """Reads the labels of the list. Their parents must be in it."""
    paths: dict[tuple[str, ...], int] = {}
    for number, line in read_lines(path):
        steps = tuple(line.strip().split("/"))
        if steps in (("",), ("Root",), (_TOP,)):
            continue
        if steps[0] != _TOP or "" in steps:
            raise bad_line(path, number, f'"{_TOP}/<label>/<label>" is needed, got {line.strip()!r}.')
        paths[steps[1:]] = number
    for steps, number in paths.items():
        if len(steps) > 1 and steps[:-1] not in paths:
            raise bad_line(path, number, f"the parent of {'/'.join((_TOP, *steps))!r} is not in the list.")
    return Taxonomy.from_paths(paths)


def read_article(content: bytes, where: str) -> tuple[str, list[str]]:
    """Reads the text and the taxonomic classifiers of an article."""
    try:
        article = ElementTree.fromstring(content)
    except ElementTree.ParseError as problem:
        raise ValueError(f"{where}, line {problem.position[0]}: no XML, {problem}.") from problem
    paragraphs = article.findall(".//block[@class='full_text']//p") or article.findall(".//p")
    text = "\n".join(" ".join("".join(paragraph.itertext()).split()) for paragraph in paragraphs)
    classifiers = article.findall(".//classifier[@type='taxonomic_classifier']")
    return text, ["".join(classifier.itertext()).strip() for classifier in classifiers]


def nodes_of(classifiers: list[str], nodes: dict[tuple[str, ...], int]) -> set[int]:
    """Returns the labels of the list that the classifiers or their prefixes name."""
    labels: set[int] = set()
    for classifier in classifiers:
        steps = tuple(classifier.split("/"))
        if len(steps) >= _MIN_STEPS and steps[0] == _TOP:
            starts = (steps[1:end] for end in range(2, len(steps) + 1))
            labels.update(nodes[start] for start in starts if start in nodes)
    return labels


def load(source: Path, output: Path, lists: Path | None = None) -> None:
    """Converts the data set in SOURCE_DIR and writes it to OUT_DIR.

    Raises:
        FileNotFoundError: for a missing list.
        ValueError: for a malformed line or article, or an article in two lists.
    """
    lists = lists or source
    taxonomy = read_labels(find_file(lists, ("nyt_label.vocab",), "the labels, from HiAGM's repository"))
    nodes = {tuple(taxonomy.paths(node)[0]): node for node in range(taxonomy.num_labels)}
    splits: dict[str, str] = {}
    for split, name in FILES.items():
        path = find_file(
            lists, (f"idnewnyt_{name}.json",), f"the articles of the {split} split, from HiAGM's repository"
        )
        for number, file in read_list(path):
            if file in splits:
                raise bad_line(path, number, f"{file} is listed twice, first for {splits[file]}.")
            splits[file] = split
    missing = dict(splits)
    with Writer(output, taxonomy, PUBLISHED) as writer:
        for file, content, where in documents_in(source, splits):
            if file not in missing:
                writer.note("articles found more than once, taken once")
                continue
            text, classifiers = read_article(content, where)
            writer.add(missing.pop(file), text, nodes_of(classifiers, nodes))
        for split in missing.values():
            writer.drop(split, "no file")


if __name__ == "__main__":
    main(load, __doc__, options={"lists": {"type": Path, "help": "folder of the four lists, by default SOURCE_DIR"}})
