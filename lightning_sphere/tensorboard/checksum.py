"""The checksums of an event file, by compiled code.

TensorBoard's own Python takes them byte by byte: for the events of one flush that is more work than all formulas, and
it keeps other threads from running. The bytes that are written are the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from google_crc32c import value as crc32c
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c


def masked(data: bytes) -> bytes:
    """The checksum of some bytes as an event file holds it: CRC-32C, rotated and shifted so that it can be nested."""
    checksum = crc32c(data)
    return struct.pack("<I", (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


class _Records:
    """Writes records as TensorBoard's ``RecordWriter`` does: length, its checksum, data, its checksum."""

    def __init__(self, original: Any) -> None:
        self._original, self._file = original, original._writer

    def write(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        self._file.write(length + masked(length) + data + masked(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def quicken(file_writer: Any) -> Callable[[], None]:
    """Have a ``SummaryWriter``'s file writer take checksums quickly, if it is made as expected.

    Args:
        file_writer: ``SummaryWriter.file_writer``.

    Returns:
        Restores what was before.
    """
    worker = getattr(getattr(getattr(file_writer, "event_writer", None), "_async_writer", None), "_worker", None)
    records = getattr(worker, "_record_writer", None)
    fits = type(records).__name__ == "RecordWriter" and hasattr(records, "_writer")
    sample = bytes(range(200))
    if worker is None or not fits or masked(sample) != struct.pack("<I", masked_crc32c(sample)):
        return lambda: None
    worker._record_writer = quick = _Records(records)

    def restore() -> None:
        if worker._record_writer is quick:
            worker._record_writer = records

    return restore
