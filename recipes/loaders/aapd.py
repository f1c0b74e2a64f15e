"""Converts the arXiv Academic Paper Dataset.

    python recipes/loaders/aapd.py SOURCE_DIR OUT_DIR

Reads `text_{train,val,test}` and `label_{train,val,test}` as published with SGM. Each line is an abstract, or its
subjects ("cs.it math.it"). The split is the published one: 53,840 / 1,000 / 1,000. The subjects contain the
hierarchy: the archive is before the first dot, and the subject is below it ("cs" > "cs.it"). A subject without a dot
("quant-ph") is an archive.
"""

from itertools import zip_longest
from pathlib import Path

from shared import Writer, bad_line, find_file, main, read_lines

from hcal_hf import Taxonomy

FILES = {"train": "train", "validation": "val", "test": "test"}
PUBLISHED = {"train": 53_840, "validation": 1_000, "test": 1_000}


def path_of(subject: str) -> tuple[str, ...]:
    """Returns the path of a subject: ("cs", "cs.it") for "cs.it", ("quant-ph",) for "quant-ph"."""
    archive = subject.partition(".")[0]
    return (subject,) if archive == subject else (archive, subject)


def read(texts: Path, labels: Path) -> list[tuple[str, list[str]]]:
    """Reads the texts and subjects of a split."""
    documents: list[tuple[str, list[str]]] = []
    for text, label in zip_longest(read_lines(texts), read_lines(labels)):
        if text is None or label is None:
            path, other = (labels, texts) if text is None else (texts, labels)
            raise ValueError(f"{path} has more lines than {other}, {len(documents)}: they must go line by line.")
        subjects = label[1].split()
        for subject in subjects:
            if subject.startswith(".") or subject.endswith("."):
                raise bad_line(labels, label[0], f"a subject needs words around its dot, got {subject!r}.")
        documents.append((text[1], subjects))
    return documents


def load(source: Path, output: Path) -> None:
    """Converts the data set in SOURCE_DIR and writes it to OUT_DIR.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for files of different lengths or a malformed subject.
    """
    documents = {}
    for split, name in FILES.items():
        texts = find_file(source, (f"text_{name}",), f"abstracts of the {split} split, one a line")
        documents[split] = read(texts, find_file(source, (f"label_{name}",), f"subjects of the {split} split"))
    subjects = {subject for rows in documents.values() for _, found in rows for subject in found}
    taxonomy = Taxonomy.from_edges(
        [(path[0], path[1]) for path in map(path_of, sorted(subjects)) if len(path) > 1],
        roots=sorted({path_of(subject)[0] for subject in subjects}),
    )
    with Writer(output, taxonomy, PUBLISHED) as writer:
        for split, rows in documents.items():
            for text, found in rows:
                writer.add(split, text, [taxonomy.index(subject) for subject in found])


if __name__ == "__main__":
    main(load, __doc__)
