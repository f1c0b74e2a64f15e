"""A taxonomy with identifiers, names and descriptions of its labels."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..taxonomy import Taxonomy

_FIELDS = ("ids", "label_names", "descriptions")


class DescribedTaxonomy(Taxonomy):
    """A [`Taxonomy`] with what a file says about its labels in addition to the hierarchy.

    A model that is built from it shows `label_names` next to the labels, and embeds names and descriptions with
    `prototype_anchor="label_text"`. [`DescribedTaxonomy.to_json`] keeps everything, and [`read_taxonomy`] reads it again.

    Args:
        labels, edges: as for [`Taxonomy`].
        ids (`dict[str, str]`): the identifier of each label that has one and is not the identifier itself.
        label_names (`dict[str, str]`): the name of each label that is an identifier.
        descriptions (`dict[str, str]`): longer texts of labels.

    Raises:
        ValueError: as for [`Taxonomy`], and for a key that is not a label.
    """

    def __init__(
        self,
        labels: Sequence[str],
        edges: Sequence[Sequence[int]] | np.ndarray = (),
        ids: Mapping[str, str] | None = None,
        label_names: Mapping[str, str] | None = None,
        descriptions: Mapping[str, str] | None = None,
    ):
        super().__init__(labels, edges)
        self.ids, self.label_names, self.descriptions = (
            dict(ids or {}),
            dict(label_names or {}),
            dict(descriptions or {}),
        )
        for name in _FIELDS:
            if unknown := [label for label in getattr(self, name) if label not in self.label_index]:
                raise ValueError(f"{name} has {len(unknown):,} keys that are not labels, first {unknown[0]!r}.")

    def texts(self, names: Sequence[str] | None = None) -> list[str]:
        """Returns the text of each label: "parent names: name", followed by ". " and its description if it has one."""
        own = [self.label_names.get(label, name) for label, name in zip(self.labels, self.names)]
        described = (self.descriptions.get(label) for label in self.labels)
        return [
            text if description is None else f"{text}. {description}"
            for text, description in zip(super().texts(names or own), described)
        ]

    def to_json(self, path: str | PathLike) -> None:
        """Writes labels, edges, ids, names and descriptions. [`Taxonomy.from_json`] reads the hierarchy of the file."""
        data = {"labels": list(self.labels), "edges": self.edges.tolist()}
        data |= {name: getattr(self, name) for name in _FIELDS if getattr(self, name)}
        Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _FIELDS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in _FIELDS:
            setattr(self, name, state[name])

    @classmethod
    def of(cls, taxonomy: Taxonomy, label_names: Mapping[str, str]) -> "DescribedTaxonomy":
        """Returns a taxonomy with other names of its labels."""
        ids, descriptions = getattr(taxonomy, "ids", None), getattr(taxonomy, "descriptions", None)
        return cls(taxonomy.labels, taxonomy.edges, ids, label_names, descriptions)
