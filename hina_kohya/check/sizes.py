"""How large LoKr's factors are, without a model: the widths of the layers that adapters sit on, and LyCORIS' split."""

import math

# architecture -> width of its attention layers, where most of the modules are
WIDTHS = {
    "sd15": 1280,
    "sd2": 1280,
    "sdxl": 1280,
    "sd3": 1536,
    "flux1": 3072,
    "lumina2": 2304,
    "anima": 2048,
    "hunyuan-image": 3584,
}


def split(dimension: int, factor: int = -1) -> tuple[int, int]:
    """Two sizes, smaller first, with `dimension` as product; the smaller is at most `factor`, or (-1) near the root."""
    if factor > 0 and dimension % factor == 0:
        small = factor
    else:
        limit = math.isqrt(dimension) if factor == -1 else min(factor, math.isqrt(dimension))
        small = max(each for each in range(1, limit + 1) if dimension % each == 0)
    return min(small, dimension // small), max(small, dimension // small)


def largest_factor(width: int, factor: int, dim: int, full_matrix: bool) -> int:
    """Elements of the largest tensor of a LoKr on a square layer: w2, or its two factors when dim is small enough."""
    _, large = split(width, factor)
    return large * large if full_matrix or dim >= large / 2 else large * dim
