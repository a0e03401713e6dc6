"""Draws that are a pure function of (seed, stream, sample, counter).

A counter-based generator has no state to save, hand to a worker or replay: any word of any
sample's draw can be computed alone. So data, masks and augmentation do not depend on workers,
resume, batch composition or the number of processes.

The generator is Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC 2011). A draw is named by

seed     uint64, the run's seed;
stream   a short name, one per purpose ("mask", "crop", "order", ...);
sample   uint64, the global id of the record, never its place in a batch;
counter  uint32, whatever makes the draw new: visit, epoch, global step.

What a whole batch shares is drawn with sample = global step and a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64, UInt32, UInt64

_MASK32 = 0xFFFFFFFF
_BOUNDED_MAX = 1 << 16


@dataclass(frozen=True)
class Form:
    """Philox-4 for one word size; `product` writes the high and low words of multiplier * x."""

    bits: int
    multipliers: tuple[int, int]
    weyl: tuple[int, int]
    product: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def _product32(
    multipliers: np.ndarray | np.uint64, x: np.ndarray, high: np.ndarray, low: np.ndarray
) -> None:
    np.multiply(multipliers, x, out=high)
    np.bitwise_and(high, _LOW, out=low)
    np.right_shift(high, _HALF, out=high)


_LOW, _HALF = np.uint64(_MASK32), np.uint64(32)
PHILOX_4X32 = Form(32, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), _product32)
# Blocks that are worked on at a time: their words in work, 64 bytes a block, stay in a core's
# cache, and the memory is not given back and asked for again at every call.
_TILE = 12288


def philox_rounds(
    form: Form,
    even: UInt64[np.ndarray, "2 *blocks"],
    odd: UInt64[np.ndarray, "2 *blocks"],
    keys: UInt64[np.ndarray, "rounds 2 *#blocks"],
) -> tuple[UInt64[np.ndarray, "2 *blocks"], UInt64[np.ndarray, "2 *blocks"]]:
    """The Philox-4 bijection on words held in uint64, for either word size.

    Parameters
    ----------
    even, odd
        Counter words (0, 2) and (1, 3) of each block; overwritten.
    keys
        `round_keys` of two key words that broadcast over the blocks.

    Returns
    -------
    Output words (0, 2) and (1, 3).
    """
    ones = (1,) * (even.ndim - 1)
    multipliers = np.array(form.multipliers, np.uint64).reshape(2, *ones)
    high, low = np.empty_like(even), np.empty_like(odd)
    for key in keys:
        form.product(multipliers, even, high, low)
        # Each half is fed by the product of the other one.
        high, low = high[::-1], low[::-1]
        high ^= odd
        high ^= key
        even, odd, high, low = high, low, even, odd
    return even, odd


def round_keys(
    form: Form, key: UInt64[np.ndarray, "2 *blocks"], rounds: int = 10
) -> UInt64[np.ndarray, "rounds 2 *blocks"]:
    """What each round adds to the state: the key words, moved on by a constant each time."""
    ones = (1,) * (key.ndim - 1)
    weyl = np.array(form.weyl, np.uint64).reshape(2, *ones)
    number = np.arange(rounds, dtype=np.uint64).reshape(rounds, 1, *ones)
    keys: np.ndarray = (key + number * weyl) & np.uint64((1 << form.bits) - 1)
    return keys


def philox(
    counter: UInt32[np.ndarray, "*batch 4"],
    key: UInt32[np.ndarray, "*#batch 2"],
    rounds: int = 10,
) -> UInt32[np.ndarray, "*batch 4"]:
    """Philox-4x32: one block of four words per counter and key."""
    words = np.moveaxis(counter, -1, 0).astype(np.uint64)
    keys = np.moveaxis(key, -1, 0).astype(np.uint64)
    # A shorter key broadcasts over the leading axes of the counters.
    keys = keys.reshape(2, *(1,) * (words.ndim - keys.ndim), *keys.shape[1:])
    even, odd = (np.ascontiguousarray(words[place::2]) for place in range(2))
    even, odd = philox_rounds(PHILOX_4X32, even, odd, round_keys(PHILOX_4X32, keys, rounds))
    return np.stack((even[0], odd[0], even[1], odd[1]), axis=-1).astype(np.uint32)


@cache
def fnv1a32(name: str) -> int:
    """32-bit FNV-1a hash of a stream's name in UTF-8."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = ((value ^ byte) * 0x01000193) & _MASK32
    return value


def words(
    seed: int,
    stream: str,
    samples: Int[np.ndarray, "batch"],
    counter: int | Int[np.ndarray, "batch"],
    n: int,
    first: int = 0,
) -> UInt32[np.ndarray, "batch n"]:
    """`n` random words for each sample.

    Parameters
    ----------
    seed
        0 <= seed < 2**64.
    stream
        Name of the purpose; names in use must have different `fnv1a32`.
    samples
        Global ids, int64 or uint64.
    counter
        One for all samples or one each, 0 <= counter < 2**32.
    n, first
        Words [first, first + n) of the draw: a longer draw begins with a shorter one.

    Raises
    ------
    ValueError
        Seed or counter out of range.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed} is not in [0, 2**64)")
    counters = np.asarray(counter).reshape(-1, 1)
    if counters.size and not 0 <= counters.min() <= counters.max() <= _MASK32:
        raise ValueError("a counter is not in [0, 2**32)")
    samples = np.asarray(samples).astype(np.uint64)[:, None]
    first_block, skip = divmod(first, 4)
    blocks = -(-(skip + n) // 4)
    key = np.array([seed & _MASK32, seed >> 32 ^ fnv1a32(stream)], np.uint64)
    keys = round_keys(PHILOX_4X32, key.reshape(2, 1, 1))

    # In the first two rounds each product depends on the sample alone or on the block alone, so
    # that they cost next to nothing; only what joins the two has the size of the draw.
    m0, m2 = (np.uint64(multiplier) for multiplier in PHILOX_4X32.multipliers)
    high = samples >> _HALF
    block = m0 * np.arange(first_block, first_block + blocks, dtype=np.uint64)[None]
    sample = m2 * (samples & _LOW)
    c0 = m0 * (sample >> _HALF ^ counters.astype(np.uint64) ^ keys[0, 0])
    c2 = m2 * (block >> _HALF ^ (high if high.any() else high[:1]) ^ keys[0, 1])
    # Behind them, words 0 and 2 are the XOR of the first two here, and words 1 and 3 the third.
    state = (
        (c2 >> _HALF, sample & _LOW ^ keys[1, 0], c2 & _LOW),
        (c0 >> _HALF, block & _LOW ^ keys[1, 1], c0 & _LOW),
    )

    out = np.empty((len(samples), blocks, 4), np.uint32)
    rows = max(1, _TILE // max(1, blocks))
    for begin in range(0, len(samples), rows):
        part = slice(begin, begin + rows)
        tile = out[part]
        even, odd = np.empty((2, 2, *tile.shape[:2]), np.uint64)
        for half, parts in enumerate(state):
            one, other, odd[half] = (word[part] if len(word) > 1 else word for word in parts)
            np.bitwise_xor(one, other, out=even[half])
        even, odd = philox_rounds(PHILOX_4X32, even, odd, keys[2:])
        tile[..., 0], tile[..., 1], tile[..., 2], tile[..., 3] = even[0], odd[0], even[1], odd[1]
    return out.reshape(len(samples), 4 * blocks)[:, skip : skip + n]


def uniform32(words: UInt32[np.ndarray, "*batch n"]) -> Float32[np.ndarray, "*batch n"]:
    """Uniform in [0, 1), 24 bits, one per word. Never scale it to an integer: see `bounded`."""
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def uniform64(words: UInt32[np.ndarray, "*batch 2*n"]) -> Float64[np.ndarray, "*batch n"]:
    """Uniform in [0, 1), 53 bits, one per pair of words."""
    high = (words[..., 0::2] >> np.uint32(5)).astype(np.float64)
    low = (words[..., 1::2] >> np.uint32(6)).astype(np.float64)
    return (high * 2.0**26 + low) * 2.0**-53


def bounded(
    words: UInt32[np.ndarray, "*batch n"], n: int | Int[np.ndarray, "*#batch #n"]
) -> Int64[np.ndarray, "*batch n"]:
    """Integers in [0, n), one per word, by multiply and shift, for 1 <= n <= 2**16.

    No rejection, so draws never shift; probabilities differ from 1/n by at most 2**-32.

    An array of bounds is not checked: samplers call this in every round.

    Raises
    ------
    ValueError
        An int n outside [1, 2**16].
    """
    if isinstance(n, int) and not 1 <= n <= _BOUNDED_MAX:
        raise ValueError(f"bound {n} is not in [1, 2**16]; bounded_large takes larger ones")
    return words.astype(np.int64) * n >> 32


def bounded_large(
    words: UInt32[np.ndarray, "*batch 2*n"], n: int | Int[np.ndarray, "*#batch #n"]
) -> Int64[np.ndarray, "*batch n"]:
    """Integers in [0, n), one per pair of words, for 1 <= n <= 2**53."""
    return (uniform64(words) * n).astype(np.int64)


def normal(words: UInt32[np.ndarray, "*batch 4*n"]) -> Float64[np.ndarray, "*batch 2*n"]:
    """Standard normal numbers by Box and Muller: four words give a (cosine, sine) pair."""
    uniform = uniform64(words)
    radius = np.sqrt(-2.0 * np.log1p(-uniform[..., 0::2]))
    angle = 2.0 * np.pi * uniform[..., 1::2]
    out = np.empty(uniform.shape)
    out[..., 0::2] = radius * np.cos(angle)
    out[..., 1::2] = radius * np.sin(angle)
    return out


def permutation(words: UInt32[np.ndarray, "*batch n"]) -> Int64[np.ndarray, "*batch n"]:
    """A random order of [0, n): the stable argsort of one word per element."""
    places = np.arange(words.shape[-1], dtype=np.uint32)
    return shuffled(np.broadcast_to(places, words.shape), words).astype(np.int64)


def shuffled(
    members: UInt32[np.ndarray, "*batch n"], words: UInt32[np.ndarray, "*batch n"]
) -> UInt32[np.ndarray, "*batch n"]:
    """The members in the order of their words, one each; those with equal words ascend."""
    # Word and member in one integer: NumPy sorts those by vector instructions, 5 times as fast as
    # it argsorts.
    keys = words.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= members
    keys.sort(axis=-1)
    return keys.astype(np.uint32)


def subset(words: UInt32[np.ndarray, "*batch n"], k: int) -> Int64[np.ndarray, "*batch k"]:
    """`k` of the n elements without replacement, ascending."""
    return np.sort(permutation(words)[..., :k], axis=-1)
