"""Reports the rows of X or y that cannot be used."""

from collections.abc import Sequence


def bad_rows(name: str, rows: Sequence[tuple[int, str]]) -> ValueError:
    """Builds the error that lists the first ten bad rows.

    Args:
        name: the name of the argument, X or y.
        rows: the index and the problem of each bad row.
    """
    listed = "\n".join(f"  {name}[{row}]: {problem}" for row, problem in rows[:10])
    more = f"\n  and {len(rows) - 10} more" if len(rows) > 10 else ""
    return ValueError(f"{len(rows)} row(s) of {name} cannot be used:\n{listed}{more}")
