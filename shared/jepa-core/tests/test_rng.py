from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_core import rng

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.fixture(scope="module")
def golden(data: Callable[[str], Path]) -> dict[str, np.ndarray]:
    with np.load(data("core") / "golden_rng.npz") as file:
        return dict(file)


def draws(golden: dict[str, np.ndarray], n: int = 32) -> np.ndarray:
    """Words of every (seed, stream, counter, sample) of the golden file, in its layout."""
    return np.array(
        [
            [
                [
                    rng.words(int(seed), str(stream), golden["samples"], int(counter), n)
                    for counter in golden["counters"]
                ]
                for stream in golden["streams"]
            ]
            for seed in golden["seeds"]
        ]
    )


def product64(multipliers: np.ndarray, x: np.ndarray, high: np.ndarray, low: np.ndarray) -> None:
    """High and low 64 bits of a product, by Python's integers."""
    exact = multipliers.astype(object) * x.astype(object)
    high[:], low[:] = (exact >> 64).astype(np.uint64), (exact & (2**64 - 1)).astype(np.uint64)


PHILOX_4X64 = rng.Form(
    64,
    (0xD2E7470EE14C6C93, 0xCA5A826395121157),
    (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B),
    product64,
)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: str
) -> None:
    block = rng.philox(np.array(counter, np.uint32), np.array(key, np.uint32))
    assert " ".join(f"{word:08x}" for word in block) == expected


def test_philox_gives_the_golden_blocks(golden: dict[str, np.ndarray]) -> None:
    for name, suffix, rounds in (("kat", "", 10), ("kat", "_7rounds", 7), ("rand", "", 10)):
        inputs = golden[f"{name}_in_ctr4_key2"]
        block = rng.philox(inputs[:, :4], inputs[:, 4:], rounds)
        assert block.dtype == np.uint32
        np.testing.assert_array_equal(block, golden[f"{name}_out{suffix}"])


@pytest.mark.parametrize("key", [(0, 0), (2**64 - 1, 12345678901234567890), (7, 0)])
def test_the_round_function_at_64_bits_is_numpys_philox(key: tuple[int, int]) -> None:
    counter = [2**64 - 4, 3, 2**63, 0]
    generator = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    theirs = generator.random_raw(4 * 6).reshape(6, 4)

    # numpy increments its counter, with carry, before the first block.
    first = sum(word << (64 * place) for place, word in enumerate(counter))
    counters = [first + 1 + block for block in range(6)]
    ours = np.array(
        [[c >> (64 * place) & (2**64 - 1) for c in counters] for place in range(4)], np.uint64
    )
    keys = rng.round_keys(PHILOX_4X64, np.array(key, np.uint64)[:, None])
    even, odd = rng.philox_rounds(PHILOX_4X64, ours[0::2], ours[1::2], keys)
    np.testing.assert_array_equal(np.stack((even[0], odd[0], even[1], odd[1]), 1), theirs)


def test_a_shorter_key_broadcasts_over_the_counters() -> None:
    counters = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
    keys = np.array([[1, 2], [3, 4], [5, 6]], np.uint32)
    together = rng.philox(counters, keys)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(together[i, j], rng.philox(counters[i, j], keys[j]))


def test_words_are_the_golden_words(golden: dict[str, np.ndarray]) -> None:
    assert [rng.fnv1a32(str(name)) for name in golden["streams"]] == golden["stream_hash"].tolist()
    np.testing.assert_array_equal(draws(golden), golden["words"])


@pytest.mark.parametrize("samples", [3, 200])
@pytest.mark.parametrize("high", [0, 5])
def test_words_are_blocks_of_philox_one_after_the_other(samples: int, high: int) -> None:
    # 200 samples of 101 blocks are more than are worked on at a time.
    ids = np.arange(samples) + (np.arange(samples) % 2 * high << 32)
    visits, seed, n, first = np.arange(samples) % 7, 2**40 + 3, 401, 2
    found = rng.words(seed, "mask", ids, visits, n, first)
    key = np.array([seed % 2**32, seed >> 32 ^ rng.fnv1a32("mask")], np.uint32)
    for place in (0, 1, samples // 2, samples - 1):
        counters = [
            (block, visits[place], ids[place] % 2**32, ids[place] >> 32) for block in range(101)
        ]
        one = rng.philox(np.array(counters, np.uint32), key).ravel()[first : first + n]
        np.testing.assert_array_equal(found[place], one)


def test_conversions_are_the_golden_ones(golden: dict[str, np.ndarray]) -> None:
    words = draws(golden)
    exact = {
        "uniform32": rng.uniform32(words),
        "uniform64": rng.uniform64(words),
        "bounded_10": rng.bounded(words, 10),
        "bounded_196": rng.bounded(words, 196),
        "perm16": rng.permutation(words[..., :16]),
        "subset5_of_16_sorted": rng.subset(words[..., :16], 5),
    }
    for name, values in exact.items():
        assert values.dtype == golden[name].dtype, name
        np.testing.assert_array_equal(values, golden[name], err_msg=name)
    np.testing.assert_allclose(rng.normal(words), golden["normal64"], rtol=0, atol=1e-12)


def test_stream_names_in_use_hash_differently() -> None:
    call = re.compile(r'\bwords\(\s*[\w.]+,\s*"([^"]+)"')
    sources = Path(rng.__file__).parent.rglob("*.py")
    names = {name for path in sources for name in call.findall(path.read_text(encoding="utf-8"))}
    assert {"mask", "sizes"} <= names
    assert len({rng.fnv1a32(name) for name in names}) == len(names)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    samples=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6),
    counter=st.integers(0, 2**32 - 1),
    first=st.integers(0, 9),
    n=st.integers(0, 9),
)
def test_a_word_depends_on_its_name_alone(
    seed: int, samples: list[int], counter: int, first: int, n: int
) -> None:
    ids = np.array(samples)
    together = rng.words(seed, "mask", ids, np.full(len(ids), counter), n, first)
    assert together.shape == (len(ids), n)
    for row, sample in zip(together, samples, strict=True):
        longer = rng.words(seed, "mask", np.array([sample], np.uint64), counter, first + n + 3)
        np.testing.assert_array_equal(row, longer[0, first : first + n])


def test_every_part_of_the_name_changes_the_words() -> None:
    base = {"seed": 5, "stream": "mask", "sample": 3, "counter": 2}
    others = [
        {"seed": 5 + 2**32},
        {"seed": 6},
        {"stream": "crop"},
        {"sample": 3 + 2**32},
        {"counter": 3},
    ]
    seen = {
        tuple(
            rng.words(name["seed"], name["stream"], np.array([name["sample"]]), name["counter"], 4)[
                0
            ]
        )
        for name in [base, *(base | other for other in others)]
    }
    assert len(seen) == 1 + len(others)


def test_a_seed_or_counter_out_of_range_is_refused() -> None:
    ids = np.arange(2)
    for seed, counter in ((-1, 0), (2**64, 0), (0, -1), (0, 2**32)):
        with pytest.raises(ValueError, match="is not in"):
            rng.words(seed, "mask", ids, counter, 4)
    with pytest.raises(ValueError, match="is not in"):
        rng.words(0, "mask", ids, np.array([0, 2**32]), 4)


def test_no_samples_give_no_words() -> None:
    assert rng.words(0, "mask", np.arange(0), 0, 5).shape == (0, 5)


def test_uniforms_stay_below_one_and_integers_below_their_bound() -> None:
    top = np.full(4, 0xFFFFFFFF, np.uint32)
    assert rng.uniform32(top).max() == 1 - 2.0**-24
    assert rng.uniform64(top).max() == 1 - 2.0**-53
    for n in (1, 3, 2**16 - 1, 2**16):
        assert (rng.bounded(top, n) == n - 1).all()
        assert (rng.bounded(0 * top, n) == 0).all()
    for n in (2**16 + 1, 2**40 + 1, 2**53 - 1, 2**53):
        assert (rng.bounded_large(top, n) == n - 1).all()
    assert np.isfinite(rng.normal(top)).all()


def test_an_array_of_bounds_bounds_each_word() -> None:
    words = rng.words(0, "mask", np.arange(1000), 0, 2)
    bounds = np.arange(1, 1001)
    values = rng.bounded(words[:, 0], bounds)
    expected = [int(w) * int(n) >> 32 for w, n in zip(words[:, 0], bounds, strict=True)]
    np.testing.assert_array_equal(values, expected)
    assert (rng.bounded_large(words, bounds[:, None] << 20)[:, 0] < bounds << 20).all()


@pytest.mark.parametrize("bound", [0, -1, 2**16 + 1])
def test_a_bound_out_of_range_is_refused(bound: int) -> None:
    with pytest.raises(ValueError, match="bound"):
        rng.bounded(np.zeros(1, np.uint32), bound)


def test_large_bounds_are_hit_evenly() -> None:
    n = 3 * 2**30
    values = rng.bounded_large(rng.words(1, "order", np.arange(20_000), 0, 2), n)[:, 0]
    # The standard error of each share is 0.0033.
    shares = np.bincount(values * 3 // n, minlength=3) / len(values)
    assert np.abs(shares - 1 / 3).max() < 0.015


def test_normal_numbers_have_the_normal_moments() -> None:
    values = rng.normal(rng.words(2, "augment", np.arange(1000), 0, 400))
    assert values.shape == (1000, 200)
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.01)
    assert abs((values**4).mean() - 3) < 0.1
    # The two halves of a pair are uncorrelated.
    assert abs((values[:, 0::2] * values[:, 1::2]).mean()) < 0.02


def test_ties_in_a_permutation_go_by_index() -> None:
    words = (np.arange(600, dtype=np.uint32) % 3)[None]
    expected = [i for value in range(3) for i in range(value, 600, 3)]
    assert rng.permutation(words).tolist() == [expected]


def test_members_go_by_their_words_and_then_by_size() -> None:
    members = np.array([[30, 10, 20, 40]], np.uint32)
    words = np.array([[[5, 9, 5, 0]], [[1, 2, 3, 4]]], np.uint32)
    assert rng.shuffled(members, words).tolist() == [[[40, 20, 30, 10]], [[30, 10, 20, 40]]]


def test_a_subset_is_uniform_and_ascending() -> None:
    chosen = rng.subset(rng.words(3, "mask", np.arange(20_000), 0, 8), 3)
    assert (np.diff(chosen, axis=1) > 0).all()
    shares = np.bincount(chosen.ravel(), minlength=8) / len(chosen)
    assert np.abs(shares - 3 / 8).max() < 0.015
    assert rng.subset(np.zeros((2, 4), np.uint32), 0).shape == (2, 0)
