"""A griffe extension that turns the references of docstrings into links within the manual."""

import re
from typing import Any

import griffe

_REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?!\[|\()")
# The types of an argument, as in "    model ([`HcalConfig`], *optional*): ...".
_ARGUMENT_TYPES = re.compile(r"^( +[\w, ]+ )\((.*)\)(?=:)", re.MULTILINE)


class DocstringReferences(griffe.Extension):
    """Turns [`Name`] into a link if hcal_hf exports the name, and into plain code otherwise."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrites all docstrings of the package."""
        self._rewrite(pkg, {str(name).strip("'\"") for name in pkg.exports or []})

    def _rewrite(self, parent: Any, public_names: set[str]) -> None:
        def link(match: re.Match) -> str:
            name = match[1].removeprefix("hcal_hf.")
            top_level_name = name.partition(".")[0]
            return f"[`{name}`][hcal_hf.{top_level_name}]" if top_level_name in public_names else f"`{name}`"

        if parent.docstring:
            text = _ARGUMENT_TYPES.sub(_plain_types, parent.docstring.value)
            parent.docstring.value = _REFERENCE.sub(link, text)
        for member in parent.members.values():
            if not member.is_alias:
                self._rewrite(member, public_names)


def _plain_types(match: re.Match) -> str:
    """Removes the markup of types, which the manual shows as code."""
    types = _REFERENCE.sub(r"\1", match[2]).replace("`", "").replace("*optional*", "optional")
    return f"{match[1]}({types})"
