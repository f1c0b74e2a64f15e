"""Holds records in a file of JSON lines that loses nothing when its process is killed."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

logger = logging.get_logger(__name__)

Record = dict[str, Any]

# Characters that some programs take for the end of a line. In JSON they may only occur in strings.
_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


class LabelledFile:
    """Holds at most one record per key in a file of JSON lines, of which only one process is the writer.

    A new record is appended and written to the disc before `put` returns. If a record is replaced or removed, the whole
    file is written to a temporary file that then replaces it. So an interruption leaves the old or the new content. Lines
    with other keys are never changed. If another program changes the file, it is read again.

    Args:
        path: the file, which is created by the first record.
        key_of: returns the key of a record. It raises a ValueError if a record does not belong into the file.

    Raises:
        ValueError: if a line of the file is not such a record.
        RuntimeError: if another process has opened the file.
    """

    def __init__(self, path: str | os.PathLike, key_of: Callable[[Record], str]):
        self.path = Path(path)
        self._key_of = key_of
        self._lines: list[bytes] = []
        self._positions: dict[str, list[int]] = {}
        self._stamp: tuple[int, ...] | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as busy:
            raise RuntimeError(
                f"Another demo page is writing {self.path}: stop it, or give another file with --labelled."
            ) from busy
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Releases the file for other processes."""
        self._lock.release()

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, key: str) -> bool:
        return key in self._positions

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def line(self, key: str) -> bytes | None:
        """Returns the line of a record, or None. If the file holds several lines with one key, the last one counts."""
        positions = self._positions.get(key)
        return self._lines[positions[-1]] if positions else None

    def get(self, key: str) -> Record | None:
        """Returns the record of a key, or None."""
        line = self.line(key)
        return None if line is None else json.loads(line)

    def put(self, record: Record) -> None:
        """Writes a record, and replaces an earlier one with the same key."""
        key = self._key_of(record)
        line = json.dumps(record, ensure_ascii=False).translate(_LINE_BREAKS).encode() + b"\n"
        if key in self._positions:
            positions = self._positions[key]
            lines = [old for position, old in enumerate(self._lines) if position not in positions[1:]]
            lines[positions[0]] = line  # the first of them keeps its place
            self._rewrite(lines)
            return
        self._append(line)
        self._positions[key] = [len(self._lines)]
        self._lines.append(line)
        self._stamp = self._present_stamp()

    def remove(self, key: str) -> None:
        """Removes the record of a key, if there is one."""
        if key in self._positions:
            positions = self._positions[key]
            self._rewrite([line for position, line in enumerate(self._lines) if position not in positions])

    def refresh(self) -> None:
        """Reads the file again if another program has changed it.

        Raises:
            ValueError: if a line of the file is not a record.
        """
        if self._present_stamp() != self._stamp:
            self._read()

    def _append(self, line: bytes) -> None:
        is_new = not self.path.exists()
        with open(self.path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # a part of the line may have been written
                raise
        if is_new:
            _sync_folder(self.path.parent)

    def _rewrite(self, lines: list[bytes]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(self.path.parent)
        self._fill(lines)

    def _read(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        parts = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        last = parts.pop().strip()  # empty, unless the last line is incomplete
        lines = [part.rstrip(b"\r") + b"\n" for part in parts if part.strip()]
        self._fill(lines)  # an error in a complete line comes before any repair
        if not last:
            return
        if _is_object(last):  # only its line break is missing
            self._rewrite([*lines, last + b"\n"])
        elif not last.startswith(b"{"):
            raise ValueError(self._not_a_record(len(lines) + 1, "is no JSON object"))
        else:
            logger.warning(
                f"{self.path}: the last line was cut by an interruption and is removed. Its text is asked again: "
                f"{last[:200].decode(errors='replace')}"
            )
            self._rewrite(lines)

    def _fill(self, lines: list[bytes]) -> None:
        positions: dict[str, list[int]] = {}
        for number, line in enumerate(lines):
            if not _is_object(line):
                raise ValueError(self._not_a_record(number + 1, "is no JSON object"))
            try:
                key = self._key_of(json.loads(line))
            except ValueError as problem:
                raise ValueError(self._not_a_record(number + 1, str(problem))) from None
            positions.setdefault(key, []).append(number)
        self._lines, self._positions, self._stamp = lines, positions, self._present_stamp()

    def _present_stamp(self) -> tuple[int, ...] | None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _not_a_record(self, number: int, problem: str) -> str:
        return (
            f"Line {number} of {self.path} {problem}. The file must hold the labels that the demo page has written: fix "
            "the line, or give another file with --labelled."
        )


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _sync_folder(folder: Path) -> None:
    """Writes the names of a folder to the disc, so that a new file survives a power cut. Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
