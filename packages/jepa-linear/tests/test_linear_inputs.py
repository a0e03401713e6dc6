"""Reading: whatever the file, the same two views; preparation, lags, groups, masks, streams."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jepa_core.errors import ConfigError, DataError
from jepa_linear.data import files
from jepa_linear.data.inputs import Choice, read
from jepa_linear.data.known import from_covariances, from_modes
from jepa_linear.data.views import Masks, lagged, masked, paired
from jepa_linear.generative import masking_model

NAMES = ["a", "b", "c", "d"]


def vectors(values: np.ndarray) -> pa.Array:
    """Rows as a column of fixed-size lists, as `embed` writes them."""
    flat = pa.array(np.asarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def write(path: Path, kind: str, x: np.ndarray, y: np.ndarray) -> list[Path]:
    """Two views in a file or two of some kind."""
    if kind == "npz":
        np.savez(path / "v.npz", x=x, y=y)
        return [path / "v.npz"]
    if kind == "embeddings":
        pq.write_table(
            pa.table(
                {"id": list(map(str, range(len(x)))), "view_0": vectors(x), "view_1": vectors(y)}
            ),
            path / "v.parquet",
        )
        return [path / "v.parquet"]
    places = []
    for name, values in (("x", x), ("y", y)):
        place = path / f"{name}.{kind}"
        frame = pd.DataFrame(values, columns=NAMES)
        if kind == "npy":
            np.save(place, values)
        elif kind == "csv":
            frame.to_csv(place, index=False)
        else:
            frame.to_parquet(place)
        places.append(place)
    return places


@pytest.mark.parametrize("kind", ["npz", "npy", "csv", "parquet", "embeddings"])
def test_every_kind_of_file_gives_the_same_views(tmp_path, pairs, kind):
    x, y = (np.asarray(view, np.float32).astype(np.float64) for view in pairs)
    found = read(*write(tmp_path, kind, x, y))
    expected = paired(x, y)
    np.testing.assert_allclose(found.Sxx, expected.Sxx, rtol=1e-12)
    np.testing.assert_allclose(found.Syx, expected.Syx, rtol=1e-12)
    assert found.n == len(x)
    assert found.names == (tuple(NAMES) if kind in ("csv", "parquet") else ("x0", "x1", "x2", "x3"))


def test_covariances_are_those_of_the_textbook(pairs):
    x, y = pairs
    views = paired(x, y)
    a, b = x - x.mean(0), y - y.mean(0)
    np.testing.assert_allclose(views.Sxx, a.T @ a / len(a), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(views.Syx, b.T @ a / len(a), rtol=1e-12, atol=1e-14)
    unbiased = paired(x, y, ddof=1)
    np.testing.assert_allclose(unbiased.Syx, np.cov(y.T, x.T)[:4, 4:], rtol=1e-12, atol=1e-14)


def test_columns_are_matched_by_name(tmp_path, pairs):
    x, y = pairs
    pd.DataFrame(x, columns=NAMES).to_csv(tmp_path / "x.csv", index=False)
    pd.DataFrame(y, columns=NAMES)[NAMES[::-1]].to_csv(tmp_path / "y.csv", index=False)
    found = read(tmp_path / "x.csv", tmp_path / "y.csv")
    np.testing.assert_allclose(found.Syx, paired(x, y).Syx, rtol=1e-12)


def test_a_table_may_hold_more_than_features(tmp_path, pairs):
    x, _ = pairs
    frame = pd.DataFrame(x, columns=NAMES).assign(city="x", who=np.arange(len(x)) // 100)
    frame.to_parquet(tmp_path / "t.parquet")
    choice = Choice(columns=("a", "c"), group="who", lag=2)
    found = read(tmp_path / "t.parquet", choice=choice)
    assert found.names == ("a", "c")
    assert found.n == len(x) - 6 * 2


def test_pairs_never_cross_a_group(pairs):
    x, _ = pairs
    groups = np.array(["u", "v"] * (len(x) // 2))
    found = lagged(x, 3, groups=groups)
    u, v = x[groups == "u"], x[groups == "v"]
    expected = paired(np.concatenate([u[:-3], v[:-3]]), np.concatenate([u[3:], v[3:]]))
    np.testing.assert_allclose(found.Syx, expected.Syx, rtol=1e-12)
    assert found.rows is not None
    assert found.rows.groups is not None


def test_missing_values_do_not_shift_a_series(pairs):
    x, _ = pairs
    x = x.copy()
    x[50] = np.nan
    found = lagged(x, 2)
    good = [i for i in range(len(x) - 2) if i != 50 and i + 2 != 50]
    expected = paired(x[good], x[np.array(good) + 2])
    np.testing.assert_allclose(found.Syx, expected.Syx, rtol=1e-12)
    assert found.dropped == 2


def test_a_slow_series_is_drawn_in_longer_blocks():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4000, 1))
    slow = np.zeros_like(noise)
    for t in range(1, len(slow)):
        slow[t] = 0.95 * slow[t - 1] + noise[t]
    fast, memory = lagged(noise, 1).rows, lagged(slow, 1).rows
    assert fast is not None
    assert memory is not None
    assert fast.block <= 4
    assert 30 < memory.block < 200


def test_masks_take_the_covariances_of_the_model(pairs):
    x, _ = pairs
    C = np.cov(x.T, bias=True)
    for target in ("full", "complement", "independent"):
        found = masked(x, Masks(0.4, 0.2, target))
        expected = masking_model(C, 0.4, noise=0.2, target=target)
        np.testing.assert_allclose(found.Sxx, expected.Sxx, rtol=1e-10)
        np.testing.assert_allclose(found.Syx, expected.Syx, rtol=1e-10, atol=1e-14)


def test_scaling_is_the_same_for_both_views(pairs):
    x, y = pairs
    s = x.std(0)
    found, expected = paired(x, y, scale="std"), paired(x / s, y / s)
    np.testing.assert_allclose(found.Syx, expected.Syx, rtol=1e-10)
    np.testing.assert_allclose(np.diag(found.Sxx), 1.0)
    everything = paired(x, y, scale="global")
    assert np.trace(everything.Sxx) == pytest.approx(4)
    np.testing.assert_allclose(everything.Syx / everything.Sxx, paired(x, y).Syx / paired(x, y).Sxx)
    for views in (found, everything, paired(x, y)):
        assert views.scaling


def test_some_rows_have_the_covariances_of_those_rows(pairs):
    x, y = pairs
    chosen = np.arange(len(x)) % 3 == 0
    found = paired(x, y, scale="std").part(chosen)
    s = x.std(0)
    np.testing.assert_allclose(found.Sxx, paired(x[chosen] / s, y[chosen] / s).Sxx, rtol=1e-10)
    assert found.n == chosen.sum()


def test_a_file_too_large_for_memory_is_summed_up(tmp_path, pairs, monkeypatch):
    (path,) = write(tmp_path, "embeddings", *pairs)
    whole = read(path)
    monkeypatch.setattr(files, "available_memory", lambda: 1000)
    streamed = read(path)
    assert streamed.rows is None
    assert streamed.n == whole.n
    np.testing.assert_allclose(streamed.Syx, whole.Syx, rtol=1e-12)


def test_chunks_of_vectors_are_the_whole_column(tmp_path, pairs):
    (path,) = write(tmp_path, "embeddings", *pairs)
    (whole,) = files.vector_chunks(path, ["view_0"], rows=10_000)
    parts = [chunk[0] for chunk in files.vector_chunks(path, ["view_0"], rows=77)]
    assert len(parts) > 5
    np.testing.assert_array_equal(np.concatenate(parts), whole[0])


def test_vectors_that_are_missing_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 3))
    cells = [None if i == 4 else row.tolist() for i, row in enumerate(x)]
    table = pa.table({"view_0": pa.array(cells), "view_1": pa.array([r.tolist() for r in x])})
    pq.write_table(table, tmp_path / "v.parquet")
    found = read(tmp_path / "v.parquet")
    assert (found.n, found.dropped) == (29, 1)


def test_vectors_of_different_lengths_are_refused(tmp_path):
    cells = [[1.0, 2.0], [1.0], [2.0, 3.0]]
    pq.write_table(pa.table({"view_0": cells, "view_1": cells}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="differ in length"):
        read(tmp_path / "v.parquet")


def test_other_columns_of_vectors_are_named(tmp_path, pairs):
    x, y = pairs
    table = pa.table({"left": vectors(x), "right": vectors(y)})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(DataError, match="left, right"):
        read(tmp_path / "v.parquet")
    found = read(tmp_path / "v.parquet", choice=Choice(view_columns=("left", "right")))
    assert found.n == len(x)


def test_covariances_and_modes_from_files(tmp_path, pairs):
    views = paired(*pairs)
    np.savez(tmp_path / "c.npz", Sxx=views.Sxx, Syx=views.Syx, Syy=views.Syy, n=600)
    found = read(tmp_path / "c.npz")
    np.testing.assert_array_equal(found.Syx, views.Syx)
    assert found.n == 600
    lam, rho = [1.0, 0.5, 0.0], [0.5, 0.9, 0.0]
    np.savez(tmp_path / "m.npz", lam=lam, rho=rho)
    pd.DataFrame({"lam": lam, "rho": rho}).to_csv(tmp_path / "m.csv", index=False)
    for name in ("m.npz", "m.csv"):
        modes = read(tmp_path / name)
        np.testing.assert_allclose(np.diag(modes.Sxx), [2.0, 0.5 / 0.9])
        assert modes.constant == ("mode 2",)


def test_three_numbers_of_a_mode_agree_whichever_two_are_given():
    a = from_modes([1.0, -0.3], rho=[0.5, -0.2])
    b = from_modes([1.0, -0.3], sigma2=[2.0, 1.5])
    np.testing.assert_allclose(a.Sxx, b.Sxx)


def test_covariances_may_be_scaled():
    S, cross = np.diag([4.0, 1.0]), np.diag([2.0, 0.5])
    found = from_covariances(S, cross, scale="std")
    np.testing.assert_allclose(found.Syx, np.diag([0.5, 0.5]))


@pytest.mark.parametrize(
    "change",
    [{"lag": 1, "masks": Masks(0.5)}, {"order": "t"}, {"view_columns": ("a", "b")}, {"lag": 1}],
)
def test_a_choice_that_does_not_fit_is_refused(tmp_path, pairs, change):
    (path,) = write(tmp_path, "npz", *pairs)
    both = write(tmp_path, "csv", *pairs)
    with pytest.raises(ConfigError):
        read(
            *(both if "lag" in change and len(change) == 1 else [path]),
            choice=replace(Choice(), **change),
        )


def test_masks_and_lags_read_an_array_of_an_archive(tmp_path, pairs):
    x, _ = pairs
    np.savez(tmp_path / "t.npz", table=x, who=np.arange(len(x)) // 60)
    found = read(tmp_path / "t.npz", choice=Choice(lag=1, group="who"))
    assert found.n == len(x) - 10
    assert read(tmp_path / "t.npz", choice=Choice(masks=Masks(0.5), group="who")).n == len(x)
