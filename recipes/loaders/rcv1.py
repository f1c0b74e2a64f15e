"""Converts RCV1-v2, topics.

    python recipes/loaders/rcv1.py SOURCE_DIR OUT_DIR

Reads the stories of Reuters Corpus Volume 1 (`<id>newsML.xml`, in folders, zip or tar files anywhere below
SOURCE_DIR) and two files of the RCV1-v2 appendices, which may end in .gz:

    rcv1-v2.topics.qrels     one "<topic> <story id> 1" per line                                (appendix 8)
    rcv1.topics.hier.orig    "parent: <topic>  child: <topic>  child-description: <words>"      (appendix 2)

The split is LYRL2004: stories up to id 26150 are for training (23,149), later ones for testing (781,265). It has no
validation split. As in the field's preprocessing, scikit-learn's `train_test_split` with random_state 0 takes a tenth
of the training stories. The text is headline and paragraphs. Labels are named by their descriptions. "codes" in
taxonomy.json has their topic codes.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from shared import Writer, bad_line, documents_in, find_file, main, read_lines, unique_names
from sklearn.model_selection import train_test_split

from hcal_hf import Taxonomy

LAST_TRAINING_ID = 26_150
PUBLISHED = {"train": 20_834, "validation": 2_315, "test": 781_265}
_EDGE = re.compile(r"parent:\s*(\S+)\s+child:\s*(\S+)\s+child-description:\s*(.*\S)\s*")
# The root of the hierarchy and its parent, which are not topics.
_ABOVE = {"Root", "None"}


def read_hierarchy(path: Path) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Reads the (parent code, child code) edges, with "Root" above the top topics, and the title of each code."""
    edges, titles = [], {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        match = _EDGE.fullmatch(line.strip())
        if match is None:
            raise bad_line(
                path, number, f'"parent: ...  child: ...  child-description: ..." is needed, got {line.strip()!r}.'
            )
        parent, child, title = match.groups()
        if child not in _ABOVE:
            edges.append((parent, child))
            titles[child] = title
    unknown = sorted({parent for parent, _ in edges} - set(titles) - _ABOVE)
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is a parent, but no line has it as a child.")
    return edges, titles


def read_topics(path: Path, titles: dict[str, str]) -> dict[int, list[str]]:
    """Reads the topic codes of each story id, in the order of the ids."""
    topics: dict[int, list[str]] = {}
    for number, line in read_lines(path):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 3 or not cells[1].isdigit():
            raise bad_line(path, number, f'"<topic> <story id> 1" is needed, got {line!r}.')
        if cells[0] not in titles:
            raise bad_line(path, number, f"topic {cells[0]!r} is not in the hierarchy of topics.")
        topics.setdefault(int(cells[1]), []).append(cells[0])
    return dict(sorted(topics.items()))


def split_of(ids: list[int]) -> dict[int, str]:
    """Returns the split of each story. `ids` must be ascending."""
    training = [story for story in ids if story <= LAST_TRAINING_ID]
    if len(training) < 2 or len(training) == len(ids):
        raise ValueError(
            f"{len(training)} of {len(ids)} stories have ids up to {LAST_TRAINING_ID}, which are for training. The file of "
            "topics is incomplete."
        )
    train, validation = train_test_split(training, test_size=0.1, random_state=0)
    return {**dict.fromkeys(ids, "test"), **dict.fromkeys(train, "train"), **dict.fromkeys(validation, "validation")}


def read_story(content: bytes, where: str) -> str:
    """Reads the headline and paragraphs of a story."""
    try:
        story = ElementTree.fromstring(content)
    except ElementTree.ParseError as problem:
        raise ValueError(f"{where}, line {problem.position[0]}: no XML, {problem}.") from problem
    elements = [story.find("headline"), *story.findall("text/p")]
    return "\n".join(" ".join("".join(element.itertext()).split()) for element in elements if element is not None)


def load(source: Path, output: Path) -> None:
    """Converts the data set in SOURCE_DIR and writes it to OUT_DIR.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a malformed line or story, or an unknown topic.
    """
    hierarchy = ("rcv1.topics.hier.orig", "rcv1.topics.hier.orig.txt")
    edges, titles = read_hierarchy(find_file(source, hierarchy, "the hierarchy of topics, appendix 2 of RCV1-v2"))
    topics = read_topics(find_file(source, ("rcv1-v2.topics.qrels",), "the topics of the stories, appendix 8"), titles)
    names = unique_names(titles)
    inner = [(names[parent], names[child]) for parent, child in edges if parent not in _ABOVE]
    children = {child for _, child in inner}
    taxonomy = Taxonomy.from_edges(inner, roots=[name for name in names.values() if name not in children])
    nodes = {code: taxonomy.index(name) for code, name in names.items()}
    splits = split_of(list(topics))
    files = {f"{story}newsML.xml": story for story in topics}
    codes = {name: code for code, name in names.items()}
    with Writer(output, taxonomy, PUBLISHED, extra={"codes": codes}) as writer:
        for name, content, where in documents_in(source, files):
            story = files[name]
            if story not in topics:
                writer.note("stories found more than once, taken once")
                continue
            writer.add(splits[story], read_story(content, where), [nodes[code] for code in topics.pop(story)])
        for story in topics:
            writer.drop(splits[story], "no file")


if __name__ == "__main__":
    main(load, __doc__)
