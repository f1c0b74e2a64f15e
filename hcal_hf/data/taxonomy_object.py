"""Reads taxonomies from Python objects and JSON: nested dictionaries, lists of children, nodes with children."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..taxonomy import Taxonomy
from .described_taxonomy import DescribedTaxonomy
from .node_table import NodeTable
from .taxonomy_text import add_family

_FORMS = ("labels", "edges", "paths", "roots")
_EXTRAS = ("identity", "ids", "label_names", "descriptions")
_CHILDREN = ("children", "subcategories", "nodes", "narrower")
_NAMES = ("name", "label", "title", "text", "prefLabel")
_IDS = ("id", "code", "key", "notation")
_DESCRIPTIONS = ("description", "definition")


def is_taxonomy_json(data: Any) -> bool:
    """Returns whether an object has one of the forms that [`Taxonomy.from_json`] reads."""
    if not isinstance(data, Mapping) or not set(_FORMS) & data.keys() or data.keys() - {*_FORMS, *_EXTRAS}:
        return False
    return all(isinstance(data.get(name, []), list | tuple) for name in _FORMS)


def from_taxonomy_json(data: Mapping[str, Any], source: str) -> Taxonomy:
    """Builds the taxonomy of an object in one of the forms that [`Taxonomy.from_json`] reads.

    Raises:
        ValueError: if the object does not describe a valid taxonomy.
    """
    try:
        if "labels" in data:
            taxonomy = Taxonomy(data["labels"], data.get("edges", ()))
        elif "paths" in data:
            taxonomy = Taxonomy.from_paths(data["paths"], identity=data.get("identity", "path"))
        else:
            taxonomy = Taxonomy.from_edges(
                [tuple(edge) for edge in data.get("edges", ())], roots=data.get("roots", ())
            )
        extras = {name: data[name] for name in ("ids", "label_names", "descriptions") if data.get(name)}
        return DescribedTaxonomy(taxonomy.labels, taxonomy.edges, **extras) if extras else taxonomy
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{source}: {problem}") from problem


def object_format(data: Any, source: str) -> str:
    """Returns how an object is read: "json", "skos", "nodes", "parent-children", "nested", "lines", "paths" or "rows".

    Raises:
        ValueError: if it has none of these forms, or several are possible.
    """
    if isinstance(data, Mapping):
        if is_taxonomy_json(data):
            return "json"
        if "@context" in data or "@graph" in data:
            return "skos"
        if _is_node(data):
            return "nodes"
        values = list(data.values())
        if values and all(isinstance(value, list | tuple | set) for value in values):
            listed = [child for value in values for child in value]
            if all(isinstance(child, str) for child in listed) and not data.keys().isdisjoint(listed):
                return "parent-children"
        if not any(values):
            raise ValueError(
                f"{source} has no hierarchy: it is an object with the keys {sorted(data)[:5]} and empty values. Give "
                'format="nested" if these are labels without children.'
            )
        return "nested"
    if isinstance(data, list | tuple):
        if not data:
            raise ValueError(f"{source} is empty.")
        if all(isinstance(item, str) for item in data):
            return "lines"
        if all(isinstance(item, list | tuple) for item in data):
            return _format_of_lists(data, source)
        if all(isinstance(item, Mapping) for item in data):
            if any("@id" in item for item in data):
                return "skos"
            if any(_is_node(item) for item in data):
                return "nodes"
            is_flat = all(not isinstance(value, Mapping | list | tuple) for item in data for value in item.values())
            return "rows" if is_flat else "nested"
        if all(isinstance(item, Mapping | str) for item in data):
            return "nested"
    raise ValueError(
        f"{source} cannot be read as a taxonomy: it must be a nested dictionary, a dictionary of lists of children, a list "
        f"of paths, or taxonomy JSON, got {type(data).__name__}."
    )


def _format_of_lists(data: Sequence[Sequence[Any]], source: str) -> str:
    if all(len(item) == 2 for item in data) and {item[0] for item in data} & {item[1] for item in data}:
        first = next(item[1] for item in data if item[1] in {other[0] for other in data})
        raise ValueError(
            f"{source} is a list of pairs that can be read in several ways: {first!r} is at both places. Give "
            'format="edges" for (parent, child) pairs, or format="paths" for paths of two steps.'
        )
    return "paths"


def _is_node(data: Mapping[str, Any]) -> bool:
    return any(isinstance(data.get(name), list | tuple) for name in _CHILDREN) and any(
        isinstance(data.get(name), str) for name in (*_NAMES, *_IDS)
    )


# ---- Reading ----


def add_nested(nodes: NodeTable, data: Any) -> None:
    """Adds nested dictionaries. A leaf has an empty value: {}, [], None or "". Lists hold names and dictionaries."""
    open_items: list[tuple[int, Any, str]] = [(-1, data, "")]  # (parent, contents, path for messages)
    while open_items:
        parent, contents, where = open_items.pop()
        items: list[tuple[Any, Any]] = []
        if isinstance(contents, Mapping):
            items = list(contents.items())
        elif isinstance(contents, str):
            items = [(contents, None)] if contents.strip() else []
        elif isinstance(contents, list | tuple | set):
            for item in contents:
                items += list(item.items()) if isinstance(item, Mapping) else [(item, None)]
        elif contents is not None:
            raise ValueError(
                f"{nodes.source}: the value of {where or 'the object'!r} must be a dictionary, a list of names or empty, "
                f"got {contents!r}."
            )
        below = []
        for name, value in items:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"{nodes.source}: a name below {where or 'the top'!r} must be a text, got {name!r}.")
            place, before = len(nodes) + 1, len(nodes)
            node = nodes.add_path([name], place, parent)
            if len(nodes) == before:
                nodes.repeated.append(place)
            below.append((node, value, name))
        open_items += reversed(below)


def add_node_objects(nodes: NodeTable, data: Any) -> None:
    """Adds objects such as {"name": ..., "id": ..., "children": [...]}."""
    open_items = [(-1, item) for item in reversed(data if isinstance(data, list | tuple) else [data])]
    while open_items:
        parent, item = open_items.pop()
        item = {"name": item} if isinstance(item, str) else item
        place = len(nodes) + 1
        if not isinstance(item, Mapping):
            raise nodes.error(place, f"a node must be an object with a name and children, got {item!r}.")
        id_ = _first(item, _IDS)
        name = _first(item, _NAMES) or id_
        if not name:
            raise nodes.error(place, f"an object has no name ({', '.join(_NAMES)}): its keys are {sorted(item)}.")
        node = nodes.add_path([name], place, parent)
        nodes.describe(node, place, id_, _first(item, _DESCRIPTIONS))
        children = next((item[key] for key in _CHILDREN if isinstance(item.get(key), list | tuple)), ())
        open_items += [(node, child) for child in reversed(children)]


def _first(item: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        if isinstance(value := item.get(name), str | int) and str(value).strip():
            return str(value).strip()
    return None


def add_child_lists(nodes: NodeTable, data: Mapping[str, Any], root: str | None) -> None:
    """Adds a dictionary of parents and lists of their children."""
    for place, (parent, children) in enumerate(data.items(), start=1):
        if isinstance(children, str) or not all(isinstance(child, str) for child in children):
            raise nodes.error(place, f"the children of {parent!r} must be a list of names, got {children!r}.")
        add_family(nodes, parent, list(children), place, root)
