"""Opening input files: plain, or compressed with gzip or Zstandard."""

import gzip
import io
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from pipelines.errors import DataError
from prep.endings import COMPRESSED


def is_compressed(path: Path) -> bool:
    return path.suffix in COMPRESSED


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's content as a stream; a compressed file is decompressed as it is read, never as a whole.

    A compressed file may have several members (gzip) or frames (Zstandard), as `cat a.gz b.gz` makes them: their
    contents follow each other. A frame that asks for a window above 128 MiB is refused, whatever it holds.

    Raises:
        DataError: if the file is damaged, truncated or cannot be read.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.open(file) as content:
                    yield cast("BinaryIO", content)
            elif path.suffix == ".zst":
                # Not the zstandard library: its reader takes a file that ends within a frame for complete.
                yield cast("BinaryIO", io.BufferedReader(pa.CompressedInputStream(file, "zstd")))
            else:
                yield file
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        raise DataError(f"{path}: damaged or truncated ({error}); fetch or compress it again") from error


def pass_byte_order_mark(file: BinaryIO) -> int:
    """Pass over the mark that some editors put before UTF-8, at the beginning of a file; returns its bytes, if any."""
    marked = cast("io.BufferedReader", file).peek(len(BOM_UTF8)).startswith(BOM_UTF8)
    return len(file.read(len(BOM_UTF8))) if marked else 0
