"""What a check found: problems, each with its number, examples and what to do, and a report of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..taxonomy import Taxonomy

MAX_EXAMPLES = 5
Severity: TypeAlias = Literal["error", "warning"]


@dataclass
class Finding:
    """One kind of problem.

    Attributes:
        kind: a word for it, the same in all versions.
        severity: `"error"`: it cannot be trained on, or is certainly not meant. `"warning"`: it may be meant.
        message: what it is.
        fix: what to do.
        examples: where, the first few.
        count: how many there are (of each kind of mistake in rows, how many different ones).
        rows: how many rows have it, where it is a mistake in rows.
    """

    kind: str
    severity: Severity
    message: str
    fix: str
    examples: list[str] = field(default_factory=list)
    count: int = 0
    rows: int = 0


@dataclass
class Report:
    """What was read and found.

    Attributes:
        source: the file.
        findings: errors first.
        taxonomy: the hierarchy, where it could be built.
        documents: their number; None for a file that is only a hierarchy.
    """

    source: str
    findings: list[Finding]
    taxonomy: Taxonomy | None = None
    documents: int | None = None

    def number(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        levels = [] if self.taxonomy is None else [level.stop - level.start for level in self.taxonomy.levels]
        return {
            "source": self.source,
            "documents": self.documents,
            "labels": sum(levels),
            "levels": levels,
            "errors": self.number("error"),
            "warnings": self.number("warning"),
            "findings": [vars(finding) for finding in self.findings],
        }

    def __str__(self) -> str:
        known = [] if self.documents is None else [f"{self.documents:,} documents"]
        if self.taxonomy is not None:
            sizes = " + ".join(f"{level.stop - level.start:,}" for level in self.taxonomy.levels)
            known.append(
                f"{self.taxonomy.num_labels:,} labels on {len(self.taxonomy.levels)} levels ({sizes}), "
                f"{int(self.taxonomy.is_leaf.sum()):,} of them leaves"
            )
        lines = [f"{self.source}: {'; '.join(known) or 'no hierarchy can be built'}"]
        for finding in self.findings:
            lines += ["", f"{finding.severity}: {finding.message}: {finding.rows or finding.count:,}"]
            lines += [f"    {example}" for example in finding.examples]
            if finding.count > len(finding.examples) > 0:
                lines.append(f"    and {finding.count - len(finding.examples):,} more")
            lines.append(f"  -> {finding.fix}")
        kinds = [f"{self.number(severity)} of {severity}s" for severity in ("error", "warning")]
        return "\n".join([*lines, "", f"Kinds of problems: {', '.join(kinds)}."])


class Findings:
    """Collects occurrences by kind; keeps a few of each as examples."""

    def __init__(self) -> None:
        self.found: dict[str, Finding] = {}

    def add(self, severity: Severity, kind: str, message: str, fix: str, examples: Iterable[str]) -> None:
        """Adds one occurrence for each example."""
        for example in examples:
            finding = self.found.setdefault(kind, Finding(kind, severity, message, fix))
            finding.count += 1
            if len(finding.examples) < MAX_EXAMPLES:
                finding.examples.append(example)

    def sorted(self) -> list[Finding]:
        return sorted(self.found.values(), key=lambda finding: finding.severity != "error")

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.found.values())
