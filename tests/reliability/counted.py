"""The size of the reliability tests, and the counts that a long run stores for recipes/benchmarks/pages/reliability.md."""

import contextlib
import json
import os
import time
from pathlib import Path

# The number of fuzzed cases in total, and the file to which each test appends its count. `make reliability` sets both.
CASES = int(os.environ.get("HCAL_FUZZ_CASES", "3000"))
ROWS = os.environ.get("HCAL_RELIABILITY_ROWS")


class Count:
    """Counts cases and failures. Other facts are attributes of the row."""

    def __init__(self):
        self.cases = 0
        self.facts = {}


@contextlib.contextmanager
def counted(kind, unit):
    """Yields a [`Count`] and stores it as a row, with whether all cases passed, if `HCAL_RELIABILITY_ROWS` names a file.

    Args:
        kind: the kind of cases.
        unit: one case in words.
    """
    count, start, cpu = Count(), time.perf_counter(), time.process_time()
    failed = True
    try:
        yield count
        failed = False
    finally:
        row = {
            "kind": kind,
            "unit": unit,
            "cases": count.cases,
            "passed": not failed,
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            **count.facts,
        }
        if ROWS:
            with Path(ROWS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
