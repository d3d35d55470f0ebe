"""What was read of a run, kept until the run grows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

LIMIT = 256 * 2**20
"""Bytes of numbers that are kept, of all runs together: two dozen quantities of 2000 steps of 300 layers. What was not
asked for the longest goes first."""


class Cache:
    """Remembers one version of each thing; threads may share it.

    Args:
        limit: bytes. Anything larger than that is not kept.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Hashable, Any, int]] = OrderedDict()
        self.size = 0
        """Bytes kept."""

    def get(self, key: Hashable, version: Hashable) -> Any:
        """What was put under the same version; ``None`` otherwise."""
        with self._lock:
            found = self._kept.get(key)
            if found is None or found[0] != version:
                return None
            self._kept.move_to_end(key)
            return found[1]

    def put(self, key: Hashable, version: Hashable, value: Any, size: int) -> None:
        """Keep this version in place of any other.

        Args:
            key: what it is.
            version: differs when the thing does.
            value: anything but ``None``, never changed afterwards.
            size: its bytes, about.
        """
        with self._lock:
            self._drop(key)
            if size > self._limit:
                return
            self._kept[key] = (version, value, size)
            self.size += size
            while self.size > self._limit:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        _, _, size = self._kept.pop(key, (None, None, 0))
        self.size -= size
