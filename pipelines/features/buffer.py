"""64-bit words that grow in place, without a copy of them in memory."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Buffer:
    """Words that are zero at first. A page takes memory only once it is written.

    Example:
        >>> buffer = Buffer(2)
        >>> buffer.words[:] = 7
        >>> buffer.grow(3)
        >>> buffer.words.tolist()
        [7, 7, 0]
    """

    def __init__(self, n_words: int) -> None:
        self._map = _mapped(n_words)
        self.words: NDArray[np.uint64] = np.frombuffer(self._map, np.uint64)

    def grow(self, n_words: int) -> None:
        """Make room for more words. Earlier arrays of `words` should be gone; if not, the words are copied once."""
        if n_words <= len(self.words):
            return
        del self.words
        try:
            self._map.resize(8 * n_words)
        except (BufferError, SystemError):  # an array is left; the system cannot move pages
            old, self._map = np.frombuffer(self._map, np.uint64), _mapped(n_words)
            np.frombuffer(self._map, np.uint64)[: len(old)] = old
        else:
            _with_huge_pages(self._map)
        self.words = np.frombuffer(self._map, np.uint64)

    def give_back(self, first: int, last: int) -> None:
        """Take no memory any more for the words between; what they hold is lost."""
        page = mmap.PAGESIZE // 8
        first, last = -(-first // page) * page, last // page * page
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, 8 * first, 8 * (last - first))


def _mapped(n_words: int) -> mmap.mmap:
    mapped = mmap.mmap(-1, 8 * max(n_words, 1), flags=_PRIVATE)
    _with_huge_pages(mapped)
    return mapped


def _with_huge_pages(mapped: Any) -> None:
    """Fewer misses of the page table, as numpy asks for its own large arrays."""
    if hasattr(mmap, "MADV_HUGEPAGE") and len(mapped) >= 1 << 22:
        mapped.madvise(mmap.MADV_HUGEPAGE)
