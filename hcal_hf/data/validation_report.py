"""Collects the problems that checks find, and prints them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..taxonomy import Taxonomy

MAX_EXAMPLES = 5
Severity: TypeAlias = Literal["error", "warning"]


@dataclass
class Problem:
    """Describes one kind of problem.

    Attributes:
        kind: a short name, the same in all versions.
        severity: `"error"` means that training is impossible, or that the input is certainly a mistake. `"warning"` means
            that the input may be intended.
        message: describes the problem.
        fix: says what to do.
        examples: the first few places.
        count: the number of occurrences. For mistakes in rows, the number of different mistakes of this kind.
        rows: the number of rows with the problem, if it is a mistake in rows.
    """

    kind: str
    severity: Severity
    message: str
    fix: str
    examples: list[str] = field(default_factory=list)
    count: int = 0
    rows: int = 0


class ValidationReport:
    """Collects the problems of one file. Each check adds its own.

    Args:
        source: the file.

    Attributes:
        taxonomy: the hierarchy, or None if it cannot be built.
        documents: the number of documents, or None for a file that is only a hierarchy.
    """

    def __init__(self, source: str):
        self.source = source
        self.taxonomy: Taxonomy | None = None
        self.documents: int | None = None
        self._problems: dict[str, Problem] = {}

    def add(
        self, severity: Severity, kind: str, message: str, fix: str, examples: Iterable[str], rows: int = 0
    ) -> None:
        """Adds one occurrence for each example; `rows` is the number of rows that have them."""
        for example in examples:
            problem = self._problems.setdefault(kind, Problem(kind, severity, message, fix))
            problem.count += 1
            if len(problem.examples) < MAX_EXAMPLES:
                problem.examples.append(example)
        if kind in self._problems:
            self._problems[kind].rows += rows

    @property
    def problems(self) -> list[Problem]:
        """All problems, errors first."""
        return sorted(self._problems.values(), key=lambda problem: problem.severity != "error")

    def number(self, severity: Severity) -> int:
        """Counts the kinds of problems of one severity."""
        return sum(problem.severity == severity for problem in self._problems.values())

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as a dictionary that JSON can represent."""
        levels = [] if self.taxonomy is None else [level.stop - level.start for level in self.taxonomy.levels]
        return {
            "source": self.source,
            "documents": self.documents,
            "labels": sum(levels),
            "levels": levels,
            "errors": self.number("error"),
            "warnings": self.number("warning"),
            "findings": [vars(problem) for problem in self.problems],
        }

    def __str__(self) -> str:
        contents = [] if self.documents is None else [f"{self.documents:,} documents"]
        if self.taxonomy is not None:
            sizes = " + ".join(f"{level.stop - level.start:,}" for level in self.taxonomy.levels)
            contents.append(
                f"{self.taxonomy.num_labels:,} labels on {len(self.taxonomy.levels)} levels ({sizes}), "
                f"{int(self.taxonomy.is_leaf.sum()):,} of them leaves"
            )
        lines = [f"{self.source}: {'; '.join(contents) or 'no hierarchy can be built'}"]
        for problem in self.problems:
            lines += ["", f"{problem.severity}: {problem.message}: {problem.rows or problem.count:,}"]
            lines += [f"    {example}" for example in problem.examples]
            if problem.count > len(problem.examples) > 0:
                lines.append(f"    and {problem.count - len(problem.examples):,} more")
            lines.append(f"  -> {problem.fix}")
        errors, warnings = self.number("error"), self.number("warning")
        return "\n".join([*lines, "", f"Kinds of problems: {errors} of errors, {warnings} of warnings."])
