"""Reads and writes SKOS vocabularies with rdflib."""

import os
from typing import Any

from ..taxonomy import Taxonomy

_FORMATS = {".rdf": "xml", ".xml": "xml", ".ttl": "turtle", ".jsonld": "json-ld", ".nt": "nt"}


def _rdflib() -> Any:
    try:
        import rdflib
    except ImportError as missing:
        raise ImportError('SKOS needs rdflib: pip install "hcal-hf[skos]".') from missing
    return rdflib


def read_skos(
    path: str | os.PathLike, language: str = "en"
) -> tuple[list[tuple[str, str]], list[str], dict[str, str]]:
    """Reads the concepts of a SKOS file.

    A label is the notation of the concept, or else its preferred label, if these differ between all concepts, or else the
    last part of its address.

    Args:
        path: `.rdf`, `.xml`, `.ttl`, `.jsonld` or `.nt`.
        language: the language of the preferred labels. Labels without a language are used too, and others if there are
            no such labels.

    Returns:
        the edges (parent, child), the roots, and the preferred labels by label if the labels are notations.

    Raises:
        ValueError: if the file holds no concepts, or is damaged.
        ImportError: without rdflib.
    """
    rdflib = _rdflib()
    from rdflib.namespace import RDF, SKOS

    suffix = os.path.splitext(os.fspath(path))[1].lower()
    try:
        graph = rdflib.Graph().parse(os.fspath(path), format=_FORMATS[suffix])
    except Exception as problem:  # rdflib's parsers raise errors of many kinds
        raise ValueError(f"{path} cannot be read as {_FORMATS[suffix]}: {problem}") from problem
    pairs = {(parent, child) for child, parent in graph.subject_objects(SKOS.broader)}
    pairs |= set(graph.subject_objects(SKOS.narrower))
    concepts = set(graph.subjects(RDF.type, SKOS.Concept)) | {concept for pair in pairs for concept in pair}
    if not concepts:
        raise ValueError(f"{path} holds no skos:Concept.")
    ordered = sorted(concepts, key=str)
    titles = {concept: _title(graph, concept, language) for concept in ordered}
    notations = {concept: str(next(iter(graph.objects(concept, SKOS.notation)), "")) for concept in ordered}
    for labels in (notations, titles, {concept: str(concept).rstrip("/#").rpartition("/")[2] for concept in ordered}):
        if all(labels.values()) and len(set(labels.values())) == len(ordered):
            break
    else:
        labels = {concept: str(concept) for concept in ordered}
    edges = sorted((labels[parent], labels[child]) for parent, child in pairs)
    below = {child for _, child in edges}
    roots = [labels[concept] for concept in ordered if labels[concept] not in below]
    names = {} if labels is titles else {labels[concept]: titles[concept] for concept in ordered if titles[concept]}
    return edges, roots, names


def _title(graph: Any, concept: Any, language: str) -> str:
    from rdflib.namespace import SKOS

    titles = sorted(graph.objects(concept, SKOS.prefLabel), key=str)
    by_language = {title.language: str(title) for title in reversed(titles)}
    return by_language.get(language) or by_language.get(None) or next(iter(by_language.values()), "")


def write_skos(taxonomy: Taxonomy, path: str | os.PathLike, names: dict[str, str] | None = None) -> None:
    """Writes a taxonomy as SKOS in Turtle, with the labels as notations.

    Args:
        taxonomy: the hierarchy.
        path: the file.
        names: preferred labels by label; the last steps of the paths by default.

    Raises:
        ImportError: without rdflib.
    """
    rdflib = _rdflib()
    from rdflib.namespace import RDF, SKOS

    graph = rdflib.Graph()
    concepts = [rdflib.URIRef(f"urn:taxonomy:{node}") for node in range(len(taxonomy))]
    graph.bind("skos", SKOS)
    for concept, label, name in zip(concepts, taxonomy.labels, taxonomy.names):
        graph.add((concept, RDF.type, SKOS.Concept))
        graph.add((concept, SKOS.notation, rdflib.Literal(label)))
        graph.add((concept, SKOS.prefLabel, rdflib.Literal((names or {}).get(label, name))))
    for parent, child in taxonomy.edges.tolist():
        graph.add((concepts[child], SKOS.broader, concepts[parent]))
    graph.serialize(os.fspath(path), format="turtle", encoding="utf-8")
