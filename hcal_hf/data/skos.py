"""Reads and writes concept schemes of SKOS (https://www.w3.org/TR/skos-reference/)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from transformers.utils import logging

from ..node_names import quote_first
from ..taxonomy import Taxonomy
from .described_taxonomy import DescribedTaxonomy
from .node_table import NodeTable

logger = logging.get_logger(__name__)

# The name of each format in rdflib.
FORMATS = {
    ".ttl": "turtle",
    ".turtle": "turtle",
    ".nt": "nt",
    ".n3": "n3",
    ".rdf": "xml",
    ".owl": "xml",
    ".xml": "xml",
    ".skos": "xml",
    ".jsonld": "json-ld",
}
_BASE = "urn:taxonomy:"


def parse_graph(source: Path | str, format_: str, encoding: str | None = None) -> Any:
    """Parses a file, or a text in the format.

    Raises:
        ImportError: without rdflib.
        ValueError: if it is not in the format.
    """
    try:
        from rdflib import Graph
    except ImportError as missing:
        raise ImportError('Reading SKOS needs rdflib: pip install "hcal-hf[skos]".', name="rdflib") from missing
    graph = Graph()
    if isinstance(source, Path):
        from .compressed import open_bytes

        with open_bytes(source) as file:
            data = file.read().removeprefix(b"\xef\xbb\xbf")
        if encoding is not None:
            data = data.decode(encoding).encode()
    else:
        data = source.encode()
    try:
        return graph.parse(data=data, format=format_)
    except Exception as problem:  # each parser of rdflib raises its own errors
        name = source if isinstance(source, Path) else "The object"
        raise ValueError(f"{name} cannot be read as SKOS in the format {format_}: {problem}") from problem


def add_concepts(nodes: NodeTable, graph: Any, language: str | None) -> tuple[str, bool]:
    """Adds the concepts of a graph. Returns how they were read, for the log, and whether notations identify them.

    A concept is a subject of the class `skos:Concept`, or of a relation of the hierarchy. Identifiers are notations if
    all concepts have different ones, else `dcterms:identifier`, else the URIs.

    Raises:
        ValueError: if there is no concept, or no label in the language.
    """
    from rdflib import DCTERMS, RDF, SKOS

    above = [(parent, child) for child, parent in graph.subject_objects(SKOS.broader)]
    above += list(graph.subject_objects(SKOS.narrower))
    concepts = dict.fromkeys(graph.subjects(RDF.type, SKOS.Concept))
    concepts |= dict.fromkeys(node for pair in above for node in pair)
    concepts |= dict.fromkeys(graph.objects(None, SKOS.hasTopConcept))
    concepts |= dict.fromkeys(graph.subjects(SKOS.topConceptOf, None))
    if not concepts:
        raise ValueError(
            f"{nodes.source} has no concepts of SKOS: no subject of the class skos:Concept and none with skos:broader."
        )
    language = _choose_language(nodes, graph, list(concepts), language)
    notations = {
        concept: str(value) for concept in concepts if (value := graph.value(concept, SKOS.notation)) is not None
    }
    has_notations = len(set(notations.values())) == len(concepts)
    identifiers = {concept: str(value) for concept in concepts if (value := graph.value(concept, DCTERMS.identifier))}
    if len(set(identifiers.values())) < len(identifiers):
        identifiers = {}
    without = []
    for place, concept in enumerate(concepts, start=1):
        name = _literal(graph, concept, (SKOS.prefLabel,), language)
        if name is None:
            without.append(str(concept))
            name = (
                _literal(graph, concept, (SKOS.prefLabel,), None) or notations.get(concept) or _last_part(str(concept))
            )
        node = nodes.node(str(concept), name, place)
        description = _literal(graph, concept, (SKOS.definition, SKOS.scopeNote), language)
        id_ = notations[concept] if has_notations else identifiers.get(concept, str(concept))
        nodes.describe(node, place, id_, description)
        if has_notations and concept in identifiers:
            nodes.other_ids[node] = identifiers[concept]
    if without:
        logger.warning(
            f"{nodes.source}: {len(without):,} concept(s) have no skos:prefLabel in the language {language!r} and have the "
            f"label of another language or the end of their URI as name ({quote_first(without)})."
        )
    for place, (parent, child) in enumerate(above, start=1):
        if parent == child:
            raise ValueError(f"{nodes.source}: the concept {str(child)!r} is its own skos:broader concept.")
        nodes.edges.setdefault((nodes.node(str(parent), "", 0), nodes.node(str(child), "", 0)), place)
    schemes = {str(scheme) for scheme in graph.subjects(RDF.type, SKOS.ConceptScheme)}
    if len(schemes) > 1:
        logger.warning(
            f"{nodes.source} has {len(schemes)} concept schemes, and all are read: {quote_first(sorted(schemes))}."
        )
    ids = "notations" if has_notations else "URIs"
    return f"SKOS with labels in {language or 'no language'}, {ids} as ids", has_notations


def _choose_language(nodes: NodeTable, graph: Any, concepts: list[Any], language: str | None) -> str:
    """Returns the language of most labels, English among equals, unless one is given."""
    from rdflib import SKOS

    counts: Counter[str] = Counter()
    for concept in concepts:
        counts.update({getattr(label, "language", None) or "" for label in graph.objects(concept, SKOS.prefLabel)})
    if language is not None:
        if language not in counts:
            raise ValueError(
                f"{nodes.source} has no skos:prefLabel in the language {language!r}. There are "
                f"{', '.join(f'{name or chr(34) * 2} ({number:,})' for name, number in counts.most_common(20))}."
            )
        return language
    if not counts:
        return ""
    chosen = max(counts, key=lambda name: (counts[name], name == "en", name == "", name))
    if len(counts) > 1:
        others = ", ".join(f"{name or 'none'} ({number:,})" for name, number in counts.most_common(10))
        logger.warning(
            f"{nodes.source}: labels in the language {chosen!r} are read. There are {others}; give language."
        )
    return chosen


def _literal(graph: Any, concept: Any, properties: tuple[Any, ...], language: str | None) -> str | None:
    """Returns the first literal of the properties, in the language if it is not None."""
    for name in properties:
        texts = [
            str(value).strip()
            for value in graph.objects(concept, name)
            if language is None or (getattr(value, "language", None) or "") == language
        ]
        if texts := sorted(text for text in texts if text):
            return texts[0]
    return None


def _last_part(uri: str) -> str:
    return uri.rstrip("/#").replace("#", "/").rpartition("/")[2] or uri


def to_turtle(taxonomy: Taxonomy) -> str:
    """Returns a taxonomy as a concept scheme in Turtle, with the labels as notations. Labels keep their order."""
    described = taxonomy if isinstance(taxonomy, DescribedTaxonomy) else None
    uris = [f"<{_BASE}{quote(label, safe='')}>" for label in taxonomy.labels]
    lines = [
        "@prefix skos: <http://www.w3.org/2004/02/skos/core#> .",
        "@prefix dcterms: <http://purl.org/dc/terms/> .",
        "",
        f"<{_BASE}> a skos:ConceptScheme .",
    ]
    for node, (label, name) in enumerate(zip(taxonomy.labels, taxonomy.names)):
        statements = ["a skos:Concept", f"skos:inScheme <{_BASE}>", f"skos:notation {_quoted(label)}"]
        if described is not None:
            name = described.label_names.get(label, name)
            if label in described.ids:
                statements.append(f"dcterms:identifier {_quoted(described.ids[label])}")
            if label in described.descriptions:
                statements.append(f"skos:definition {_quoted(described.descriptions[label])}")
        statements.append(f"skos:prefLabel {_quoted(name)}")
        parents = taxonomy.parents(node).tolist()
        statements += [f"skos:broader {uris[parent]}" for parent in parents] or [f"skos:topConceptOf <{_BASE}>"]
        lines.append(f"{uris[node]} " + " ;\n    ".join(statements) + " .")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Writes a literal. The escapes of JSON are escapes of Turtle too."""
    return json.dumps(text, ensure_ascii=False)
