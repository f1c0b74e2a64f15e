"""A long job's output as parts: each appears whole or not at all, and a killed job goes on where it was."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout

# What a saved tokenizer says of the place that it was loaded from.
_PLACES = ("name_or_path", "is_local", "local_files_only")


class Parts:
    """The finished windows of a run, in the folder `out` + `.parts`, with a manifest of what they were made from.

    Args:
        out: the file that they become in the end.
    """

    def __init__(self, out: Path):
        self.out = out
        self.folder = out.with_name(out.name + ".parts")
        self.manifest = self.folder / "manifest.json"

    def path(self, index: int) -> Path:
        return self.folder / f"{index:08d}.parquet"

    @contextmanager
    def locked(self, is_main: bool) -> Iterator[None]:
        """Only one run at a time; the lock ends with the process that holds it, however that ends.

        Raises:
            RuntimeError: if another run holds it.
        """
        if not is_main:
            yield
            return
        self.folder.mkdir(exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as busy:
            raise RuntimeError(f"Another run is writing {self.out}: wait for it, or write elsewhere.") from busy
        try:
            yield
        finally:
            lock.release()

    def prepare(self, identity: dict[str, Any], restart: bool) -> None:
        """Makes the folder ready for parts of this identity, keeping those of an earlier run with the same.

        Raises:
            ValueError: if they were made from something else, unless `restart`; what differs is named.
        """
        for left in self.folder.glob("*.tmp"):
            left.unlink()
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
                    f"{self.folder} holds {len(self.finished())} finished windows of another run: {changes}. Run with what "
                    "it had to go on from there, or start over with restart (on the command line --restart), which throws "
                    "them away."
                )
            if not differing:
                return
        else:
            self._clear()  # without a manifest, nothing says what they are
        self._write(self.manifest, lambda path: path.write_text(json.dumps(identity, indent=2), encoding="utf-8"))

    def _clear(self) -> None:
        self.manifest.unlink(missing_ok=True)
        for part in self.folder.glob("*.parquet"):
            part.unlink()

    def finished(self) -> set[int]:
        """The indices of the parts that are there."""
        return {int(path.stem) for path in self.folder.glob("*.parquet")}

    def write(self, index: int, table: pa.Table) -> None:
        """Writes one part; it appears when it is whole."""
        self._write(self.path(index), lambda path: pq.write_table(table, path))

    @staticmethod
    def _write(path: Path, write: Any) -> None:
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # a name must not survive a power cut that its content does not
        temporary.replace(path)

    def join(self, number: int, window: int, schema: pa.Schema) -> dict[str, Any]:
        """Joins all parts in order; the output appears when it is whole.

        Args:
            number: of parts.
            window: rows of each part but the last.
            schema: of the parts.

        Returns:
            `rows`, `predicted`, `problems` (how many rows have which), `first_problems` (up to five row numbers), `out`.

        Raises:
            ValueError: for a part that is missing or has rows of other numbers, and what to do.
        """
        rows, problems = 0, Counter[str]()
        first: list[int] = []

        def write(path: Path) -> None:
            nonlocal rows
            with pq.ParquetWriter(path, schema) as writer:
                for index in range(number):
                    part = self._read(index, rows, window, is_last=index == number - 1, schema=schema)
                    bad = part.filter(pa.compute.is_valid(part["problem"]))
                    problems.update(bad["problem"].to_pylist())
                    first.extend(bad["row"].to_pylist()[: 5 - len(first)])
                    writer.write_table(part)
                    rows += len(part)

        self._write(self.folder / "joined", write)
        (self.folder / "joined").replace(self.out)
        report = {"rows": rows, "predicted": rows - problems.total(), "problems": dict(problems.most_common())}
        return {**report, "first_problems": first, "out": str(self.out)}

    def _read(self, index: int, first: int, window: int, is_last: bool, schema: pa.Schema) -> pa.Table:
        path = self.path(index)
        try:
            part = pq.read_table(path, schema=schema)
            if part["row"].to_pylist() != list(range(first, first + len(part))):
                raise ValueError(f"its rows do not start at {first}")
            if len(part) != window and not (is_last and 0 < len(part) < window):
                raise ValueError(f"it has {len(part)} rows, not {window}")
        except (OSError, ValueError) as problem:  # pyarrow's errors are among them
            raise ValueError(
                f"The part {path} cannot be used: {problem}. Remove it and run again; only its rows are predicted anew."
            ) from problem
        return part

    def remove(self) -> None:
        """Removes the folder of a run that is finished."""
        shutil.rmtree(self.folder)


def model_fingerprint(model: Any, tokenizer: Any) -> str:
    """SHA-256 over configuration, weights and tokenizer, wherever they lie."""
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
                kept = {name: value for name, value in values.items() if name not in _PLACES}
                digest.update(json.dumps(kept, sort_keys=True).encode())
            elif path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()


def file_fingerprint(path: str | os.PathLike) -> str:
    """SHA-256 of a file: a copy elsewhere is the same input, an edited file is another one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["Parts", "file_fingerprint", "model_fingerprint"]
