"""Finds the rows that encoding leaves out."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from .encoding import RowEncoder
from .tables import UNREADABLE

_BATCH = 1000


@dataclass(frozen=True)
class LeftOutRows:
    """Describes the rows of one split that encoding leaves out.

    Attributes:
        kept (int `np.ndarray`): the numbers of the encoded rows in the table, in the order of the encoded table.
        unlabelled (int `np.ndarray`): the numbers of the rows without known labels.
        bad (`dict[int, str]`): the problem of each row that cannot be read.
    """

    kept: np.ndarray
    unlabelled: np.ndarray
    bad: dict[int, str]


def find_left_out(table: Dataset, encoder: RowEncoder) -> LeftOutRows:
    """Reads a table again without tokenising it, and sorts its rows into encoded, unlabelled and bad ones.

    Args:
        table: the rows before encoding.
        encoder: as for encoding; its tokenizer may be None.
    """
    columns = [*encoder.texts, *(encoder.reader.column_list if encoder.reader else [])]
    columns += [UNREADABLE] if UNREADABLE in table.column_names else []
    is_left_out = np.zeros(len(table), dtype=bool)
    bad: dict[int, str] = {}
    for start in range(0, len(table), _BATCH):
        batch = table[start : start + _BATCH]
        _, problems, _, _, unlabelled = encoder.read({name: batch[name] for name in columns})
        for row, problem in enumerate(problems):
            if problem:
                bad[start + row] = problem
            is_left_out[start + row] = bool(problem) or unlabelled[row]
    unlabelled_rows = np.setdiff1d(np.flatnonzero(is_left_out), list(bad))
    return LeftOutRows(np.flatnonzero(~is_left_out), unlabelled_rows, bad)
