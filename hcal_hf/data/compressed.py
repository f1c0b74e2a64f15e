"""Opens files for reading, decompressed if they are compressed, up to a limit on their decompressed size."""

import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import IO, Any

# A small compressed file can decompress to terabytes. The larger of these two numbers of bytes is the limit.
MOST_BYTES = 2 * 2**30
MOST_TIMES = 200
LIMIT_VARIABLE = "HCAL_MAX_DECOMPRESSED_BYTES"


def decompressed_limit(path: Path) -> int:
    """Returns the largest decompressed size of a file in bytes: 2 GiB or 200 times its size, whichever is more.

    The environment variable HCAL_MAX_DECOMPRESSED_BYTES replaces this limit.

    Raises:
        ValueError: if the variable is not a whole number above 0.
    """
    value = os.environ.get(LIMIT_VARIABLE)
    if value is None:
        return max(MOST_BYTES, MOST_TIMES * path.stat().st_size)
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{LIMIT_VARIABLE} must be a whole number of bytes above 0, got {value!r}.")
    return int(value)


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file for reading its bytes, decompressed if it ends in .gz.

    Reading raises a ValueError as soon as more bytes than [`decompressed_limit`] have been read.
    """
    return decompress(path, open(path, "rb"))


def decompress(path: Path, file: IO[bytes]) -> IO[bytes]:
    """Returns the bytes of an open file, decompressed if its path ends in .gz, with the limit of [`open_bytes`]."""
    if path.suffix.lower() != ".gz":
        return file
    return io.BufferedReader(_LimitedFile(path, file))


def check_zip(path: Path) -> None:
    """Checks that the members of a zip file, such as an Excel file, are not larger than [`decompressed_limit`].

    Raises:
        ValueError: if they are.
        zipfile.BadZipFile: if the file is not a zip file.
    """
    with zipfile.ZipFile(path) as file:
        size = sum(member.file_size for member in file.infolist())
    if size > (limit := decompressed_limit(path)):
        raise ValueError(_too_large(path, limit))


class _LimitedFile(io.RawIOBase):
    """Reads the decompressed bytes of a gzip file up to a limit. Closing it also closes the compressed file."""

    def __init__(self, path: Path, file: IO[bytes]):
        self._path, self._file = path, file
        self._gzip: Any = gzip.GzipFile(fileobj=file)
        self._limit = decompressed_limit(path)
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        number: int = self._gzip.readinto(buffer)
        self._read += number
        if self._read > self._limit:
            raise ValueError(_too_large(self._path, self._limit))
        return number

    def close(self) -> None:
        if not self.closed:
            self._gzip.close()
            self._file.close()
        super().close()


def _too_large(path: Path, limit: int) -> str:
    return (
        f"{path} has {path.stat().st_size:,} bytes and decompresses to more than {limit:,}, which could fill the memory. "
        f"If the file is right, set the environment variable {LIMIT_VARIABLE} to a larger number of bytes."
    )
