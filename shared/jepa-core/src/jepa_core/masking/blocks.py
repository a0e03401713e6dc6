"""Sizes of rectangular blocks on a grid of patches: one rounding for all who draw or check them."""

from __future__ import annotations

import math

Size = tuple[int, int]
Span = tuple[float, float]


def block_area(grid: Size, share: float) -> int:
    """Patches in a share of the grid, rounded down."""
    return math.floor(grid[0] * grid[1] * share)


def block_size(area: int, aspect: float, limits: Size) -> Size:
    """Height and width of a block, halves to even, each cut to its limit.

    Parameters
    ----------
    area
        Patches that are asked for.
    aspect
        Height over width.
    """
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(height, limits[0]), min(width, limits[1])


def block_sizes(area: int, aspects: Span, limits: Size) -> set[Size]:
    """Every size that `block_size` has for an aspect in this range, both ends included."""
    low, high = aspects
    if not area:
        return {block_size(0, low, limits)}
    sizes = set()
    for height in range(round(math.sqrt(area * low)), round(math.sqrt(area * high)) + 1):
        # The aspects that round to this height. No width is a tie where the height is one:
        # 4 area = (2 height + 1) (2 width + 1) would be odd.
        begin = max(low, max(height - 0.5, 0) ** 2 / area)
        end = min(high, (height + 0.5) ** 2 / area)
        widths = range(round(math.sqrt(area / end)), round(math.sqrt(area / begin)) + 1)
        sizes |= {(min(height, limits[0]), min(width, limits[1])) for width in widths}
    return sizes
