"""Arrays of bytes kept in memory, as they are or compressed by a codec that expands quickly.

Masks lie in the store as zstd frames, the smallest there are: 6 KB an image of 17 masks. Expanding one takes longer
than a fifth of copying everything else of the image. An LZ4 frame of the same bytes has 18 KB and expands in a third
of the time; the bytes themselves are 368 KB and are copied in a seventh (`just bench side`).
"""

import numpy as np
import pyarrow as pa

BUDGET_BYTES = 512 << 20
"""Of all frames together: those of 28,000 images."""


class QuickFrames:
    """Frames by number; may be shared by threads."""

    def __init__(self, budget_bytes: int | None = BUDGET_BYTES, plain_bytes: int = 0) -> None:
        """The first `plain_bytes` are kept as they are, then come frames.

        Once these have `budget_bytes`, no more are kept; None: all are.
        """
        self._plain: dict[int, np.ndarray] = {}
        self._frames: dict[int, pa.Buffer] = {}
        self._codec = pa.Codec("lz4_raw")
        self._left, self._plain_left = budget_bytes, plain_bytes

    def keep(self, number: int, data: np.ndarray) -> None:
        """data: uint8 [n], contiguous; copied."""
        if self._plain_left >= data.size:
            self._plain[number] = data.copy()
            self._plain_left -= data.size
        elif self._left is None or self._left > 0:
            frame = self._codec.compress(data)
            self._frames[number] = frame
            self._left = None if self._left is None else self._left - frame.size

    def fill(self, number: int, out: np.ndarray) -> bool:
        """Expand what is kept into `out`, uint8 [n]; False if nothing is."""
        if (plain := self._plain.get(number)) is not None:
            out[:] = plain
            return True
        frame = self._frames.get(number)
        if frame is None:
            return False
        out[:] = np.frombuffer(self._codec.decompress(frame, decompressed_size=out.size), np.uint8)
        return True
