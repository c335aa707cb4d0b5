"""Keys seen lately, so that a request costs no database read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from appliance.storage.api_keys import StoredApiKey

#: How long another process may go on honouring a key that this one has revoked.
CACHE_TTL_S = 5.0

#: About 0.5 KB each. Only valid keys enter, so strangers cannot push out those of the household.
CACHE_KEYS = 256


class KeyCache:
    """Bounded; the key that was not asked for the longest goes first. Any thread may use it."""

    def __init__(
        self, clock: Callable[[], float], *, ttl_s: float = CACHE_TTL_S, size: int = CACHE_KEYS
    ) -> None:
        """`clock` gives seconds and never goes back."""
        self._clock = clock
        self._ttl_s = ttl_s
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[float, StoredApiKey]] = OrderedDict()

    def get(self, key_id: str) -> StoredApiKey | None:
        """The row as it was at most `ttl_s` ago, or None."""
        with self._lock:
            entry = self._entries.get(key_id)
            if entry is None:
                return None
            read_at, key = entry
            if self._clock() - read_at >= self._ttl_s:
                del self._entries[key_id]
                return None
            self._entries.move_to_end(key_id)
            return key

    def put(self, key: StoredApiKey, read_at: float) -> None:
        """Remembers a row; `read_at` is the clock's time before it was read."""
        with self._lock:
            self._entries[key.id] = (read_at, key)
            self._entries.move_to_end(key.id)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)

    def forget(self, key_id: str) -> None:
        """Drops the row, if it is there."""
        with self._lock:
            self._entries.pop(key_id, None)

    def __len__(self) -> int:
        return len(self._entries)
