"""Writes the output of a long job in parts. Each part is written atomically, so an interrupted job resumes."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout

# Fields of a saved tokenizer that depend on the place it was loaded from.
_PLACE_FIELDS = ("name_or_path", "is_local", "local_files_only")


class AtomicWriter:
    """Writes parts into the folder `out` + `.parts`, and joins them to one Parquet file at the end.

    A manifest in the folder describes the run that made the parts. Only the same run can resume.

    Args:
        out: the file that the parts are joined to.
    """

    def __init__(self, out: Path):
        self.out = out
        self.folder = out.with_name(out.name + ".parts")
        self.manifest = self.folder / "manifest.json"

    def path(self, index: int) -> Path:
        """Returns the path of a part."""
        return self.folder / f"{index:08d}.parquet"

    @contextmanager
    def locked(self, is_main: bool) -> Iterator[None]:
        """Locks the folder, so that only one run writes to it. The lock is released when its process ends in any way.

        Args:
            is_main: whether this is the main process. Other processes do not lock.

        Raises:
            RuntimeError: if another run holds the lock.
        """
        if not is_main:
            yield
            return
        self.folder.mkdir(exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as busy:
            raise RuntimeError(f"Another run is writing {self.out}: wait for it, or choose another output.") from busy
        try:
            yield
        finally:
            lock.release()

    def prepare(self, identity: dict[str, Any], restart: bool) -> None:
        """Prepares the folder. Keeps the finished parts of an earlier run with the same identity.

        Args:
            identity: everything that the parts depend on, as JSON values.
            restart: delete the parts of an earlier run.

        Raises:
            ValueError: if the parts are from a run with another identity, unless `restart` is set. The message names the
                differences.
        """
        for temporary in self.folder.glob("*.tmp"):
            temporary.unlink()
        if restart:
            self._clear()
        if self.manifest.exists():
            before = json.loads(self.manifest.read_text(encoding="utf-8"))
            differing = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
            if differing and self.finished():
                changes = "; ".join(
                    f"{name} was {before.get(name)!r:.80}, now {identity.get(name)!r:.80}" for name in differing
                )
                raise ValueError(
                    f"{self.folder} holds {len(self.finished())} finished windows of another run: {changes}. Use the same "
                    "arguments to resume, or set restart (on the command line --restart) to delete these windows and start "
                    "over."
                )
            if not differing:
                return
        else:
            self._clear()  # without a manifest, the origin of the parts is unknown
        self._write(self.manifest, lambda path: path.write_text(json.dumps(identity, indent=2), encoding="utf-8"))

    def _clear(self) -> None:
        """Deletes the manifest and all parts."""
        self.manifest.unlink(missing_ok=True)
        for part in self.folder.glob("*.parquet"):
            part.unlink()

    def finished(self) -> set[int]:
        """Returns the indices of the finished parts."""
        return {int(path.stem) for path in self.folder.glob("*.parquet")}

    def write(self, index: int, table: pa.Table) -> None:
        """Writes one part atomically."""
        self._write(self.path(index), lambda path: pq.write_table(table, path))

    @staticmethod
    def _write(path: Path, write: Callable[[Path], object]) -> None:
        """Calls `write` with a temporary path and then renames that file to `path`."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # a power cut must not leave the final name without the content
        temporary.replace(path)

    def join(self, num_parts: int, window: int, schema: pa.Schema) -> dict[str, Any]:
        """Joins all parts in order and writes the output atomically.

        Args:
            num_parts: the number of parts.
            window: the number of rows of each part except the last.
            schema: the schema of the parts.

        Returns:
            the counts `rows` and `predicted`, `problems` (the number of rows for each problem), `first_problems` (up to
            five row numbers), and the path `out`.

        Raises:
            ValueError: if a part is missing, damaged, or has unexpected row numbers. The message says what to do.
        """
        rows, problems = 0, Counter[str]()
        first_problems: list[int] = []

        def write(path: Path) -> None:
            nonlocal rows
            with pq.ParquetWriter(path, schema) as writer:
                for index in range(num_parts):
                    part = self._read(index, rows, window, is_last=index == num_parts - 1, schema=schema)
                    bad = part.filter(pa.compute.is_valid(part["problem"]))
                    problems.update(bad["problem"].to_pylist())
                    first_problems.extend(bad["row"].to_pylist()[: 5 - len(first_problems)])
                    writer.write_table(part)
                    rows += len(part)

        self._write(self.folder / "joined", write)
        (self.folder / "joined").replace(self.out)
        report = {"rows": rows, "predicted": rows - problems.total(), "problems": dict(problems.most_common())}
        return {**report, "first_problems": first_problems, "out": str(self.out)}

    def _read(self, index: int, first_row: int, window: int, is_last: bool, schema: pa.Schema) -> pa.Table:
        """Reads a part and checks its row numbers."""
        path = self.path(index)
        try:
            part = pq.read_table(path, schema=schema)
            if part["row"].to_pylist() != list(range(first_row, first_row + len(part))):
                raise ValueError(f"its rows do not start at {first_row}")
            if len(part) != window and not (is_last and 0 < len(part) < window):
                raise ValueError(f"it has {len(part)} rows, not {window}")
        except (OSError, ValueError) as problem:  # these include the errors of pyarrow
            raise ValueError(
                f"The part {path} cannot be used: {problem}. Remove it and run again: only its rows are predicted again."
            ) from problem
        return part

    def remove(self) -> None:
        """Removes the folder after the parts are joined."""
        shutil.rmtree(self.folder)


def model_fingerprint(model: Any, tokenizer: Any) -> str:
    """Computes the SHA-256 of configuration, weights and tokenizer. It does not depend on their location."""
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.name == "tokenizer_config.json":
                values = json.loads(path.read_text(encoding="utf-8"))
                kept = {name: value for name, value in values.items() if name not in _PLACE_FIELDS}
                digest.update(json.dumps(kept, sort_keys=True).encode())
            elif path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()


def file_fingerprint(path: str | os.PathLike) -> str:
    """Computes the SHA-256 of a file's content. A copy has the same fingerprint."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["AtomicWriter", "file_fingerprint", "model_fingerprint"]
