"""Every malformed input: exit 2 and one line that names the file, what is wrong and the remedy."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa_core.errors import ConfigError, DataError, JepaError
from jepa_linear.data import files
from jepa_linear.data.inputs import read
from jepa_linear.data.known import from_covariances, from_modes
from jepa_linear.data.moments import moments, slices
from jepa_linear.data.views import Masks, lagged, masked, paired

Jepa = Callable[..., Any]


@pytest.fixture
def refused(jepa: Jepa) -> Callable[..., str]:
    """Run the check of some data, and give the one line of the refusal."""

    def run(*words: object, verb: tuple[str, ...] = ("data", "check")) -> str:
        said = jepa(*verb, *words)
        assert said.code == 2
        lines = said.err.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert "; " in lines[0], "a remedy"
        return str(lines[0])

    return run


def rows(n: int = 40, d: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def save(path: Path, *matrices: np.ndarray) -> list[Path]:
    places = [path / f"{name}.npy" for name in "xy"]
    for place, matrix in zip(places, matrices, strict=False):
        np.save(place, matrix)
    return places[: len(matrices)]


# 1. Views of different shapes.


def test_views_of_different_lengths(refused, tmp_path):
    line = refused(*save(tmp_path, rows(40), rows(30)))
    assert "x has 40 rows and y has 30" in line
    assert "x.npy" in line


def test_views_of_different_widths_say_that_a_jepa_has_one_encoder(refused, tmp_path):
    line = refused(*save(tmp_path, rows(40, 3), rows(40, 2)))
    assert "x has 3 features and y has 2" in line
    assert "same encoder" in line
    assert "reconstruction alone would allow it" in line


def test_tables_whose_columns_differ(refused, tmp_path):
    pd.DataFrame(rows(), columns=["a", "b", "c"]).to_csv(tmp_path / "x.csv", index=False)
    pd.DataFrame(rows(), columns=["a", "c", "d"]).to_csv(tmp_path / "y.csv", index=False)
    assert "column 'b' of x.csv is not in y.csv" in refused(tmp_path / "x.csv", tmp_path / "y.csv")


# 2. Too few rows.


def test_one_row(refused, tmp_path):
    assert "there are 1 rows" in refused(*save(tmp_path, rows(1), rows(1)))


def test_fewer_rows_than_features_is_a_warning_with_the_rank(jepa, tmp_path):
    said = jepa(
        "analyse",
        *save(tmp_path, rows(4, 6), rows(4, 6, 1)),
        "--holdout",
        0,
        "--out",
        tmp_path / "r",
    )
    assert said.code == 0
    assert "4 pairs for 6 features" in said.out
    assert "3 of 6 directions" in said.out


# 3. Missing values.


def test_more_than_half_of_the_rows_missing(refused, tmp_path):
    x = rows()
    x[:21, 1] = np.nan
    line = refused(*save(tmp_path, x, rows(seed=1)))
    assert "21 of 40 rows" in line


def test_some_rows_missing_are_dropped_and_counted(jepa, tmp_path):
    x = rows()
    x[:7, 1] = np.inf
    said = jepa("data", "check", *save(tmp_path, x, rows(seed=1)))
    assert said.code == 0
    assert "33" in said.out
    views = paired(x, rows(seed=1))
    assert (views.n, views.dropped) == (33, 7)
    assert views.rows is not None
    assert len(views.rows.x) == 33


# 4. A constant column.


def test_a_constant_column_is_left_out_and_named():
    x, y = rows(), rows(seed=1)
    x[:, 1] = 1e9 + 1 / 3
    views = paired(x, y, names=["a", "b", "c"])
    assert views.constant == ("b",)
    assert views.names == ("a", "c")
    assert views.Sxx.shape == (2, 2)


def test_nothing_but_constant_columns(refused, tmp_path):
    assert "no feature has variance" in refused(*save(tmp_path, np.ones((9, 2)), rows(9, 2)))


# 5. A column that is no number.


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_of_text_is_named(refused, tmp_path, kind):
    frame = pd.DataFrame({"a": [1.0, 2, 3], "city": ["x", "y", "z"]})
    path = tmp_path / f"t.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    line = refused(path, "--lag", 1)
    assert "column 'city'" in line
    assert str(path) in line
    assert "--columns" in line


def test_a_data_frame_with_text_is_refused_by_the_library():
    with pytest.raises(DataError, match="city"):
        lagged(pd.DataFrame({"a": [1.0, 2, 3], "city": ["x", "y", "z"]}), 1)


# 6. A covariance that is none.


def covariances(path: Path, **arrays: Any) -> Path:
    np.savez(path / "c.npz", **arrays)
    return path / "c.npz"


def test_a_covariance_that_is_not_symmetric(refused, tmp_path):
    S = np.eye(3)
    S[0, 1] = 1e-6
    line = refused(covariances(tmp_path, Sxx=S, Syx=0.5 * np.eye(3)))
    assert "Sxx" in line
    assert "not symmetric" in line
    from_covariances(np.eye(3) + 1e-12 * np.triu(np.ones((3, 3))), 0.5 * np.eye(3))


def test_a_covariance_with_a_negative_eigenvalue(refused, tmp_path):
    line = refused(covariances(tmp_path, Sxx=np.diag([1.0, -0.1]), Syx=0.5 * np.eye(2)))
    assert "eigenvalue -0.1" in line


# 7. The cross-covariance.


def test_a_cross_covariance_of_another_shape(refused, tmp_path):
    assert "Sxx is (3, 3), Syx (2, 2)" in refused(
        covariances(tmp_path, Sxx=np.eye(3), Syx=np.eye(2))
    )


def test_a_transposed_cross_covariance_is_found_out_by_the_raw_data(refused, tmp_path):
    x = rows(200)
    y = np.roll(x, 1, axis=1) + 0.1 * rows(200, seed=2)
    views = paired(x, y)
    line = refused(covariances(tmp_path, Sxx=views.Sxx, Syx=views.Syx.T, x=x, y=y))
    assert "E[x y']" in line
    assert "transpose" in line
    right = covariances(tmp_path, Sxx=views.Sxx, Syx=views.Syx, Syy=views.Syy, n=200, x=x, y=y)
    assert read(right).n == 200


def test_the_other_cross_covariance_alone(refused, tmp_path):
    line = refused(covariances(tmp_path, Sxx=np.eye(2), Sxy=np.eye(2)))
    assert "holds no Syx" in line
    assert "transpose" in line


# 8. Correlations above one.


def test_views_that_would_correlate_by_more_than_one(refused, tmp_path):
    Syx = np.diag([0.5, 1.01])
    line = refused(covariances(tmp_path, Sxx=np.eye(2), Syx=Syx, Syy=np.eye(2)))
    assert "more than 1 along x1" in line
    from_covariances(np.eye(2), np.diag([0.5, 1.0]), np.eye(2))


# 9. Lag and order.


def series(path: Path, **more: Any) -> Path:
    frame = pd.DataFrame(rows(12, 2), columns=["a", "b"]).assign(**more)
    frame.to_csv(path / "s.csv", index=False)
    return path / "s.csv"


def test_a_lag_as_long_as_the_shortest_group(refused, tmp_path):
    path = series(tmp_path, who=["anna"] * 9 + ["bo"] * 3)
    line = refused(path, "--lag", 3, "--group", "who")
    assert "group bo has 3 rows" in line


def test_an_order_with_duplicates(refused, tmp_path):
    path = series(tmp_path, t=[0, 1, 2, 2, *range(4, 12)])
    assert "has 2 twice" in refused(path, "--lag", 1, "--order", "t")


def test_an_order_that_is_not_sorted(refused, tmp_path):
    path = series(tmp_path, t=[0, 1, 3, 2, *range(4, 12)])
    assert "not sorted: 2 comes after" in refused(path, "--lag", 1, "--order", "t")


def test_the_same_times_in_two_groups_are_in_order(tmp_path):
    path = series(tmp_path, who=["a"] * 6 + ["b"] * 6, t=[*range(6), *range(6)])
    frame = pd.read_csv(path)
    views = lagged(frame[["a", "b"]], 1, groups=frame["who"], order=frame["t"])
    assert views.n == 10


# 10. Masks.


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, "nan"])
def test_a_keep_probability_outside_its_range(refused, tmp_path, keep):
    np.save(tmp_path / "t.npy", rows())
    assert "keep" in refused(tmp_path / "t.npy", "--keep", keep)


def test_a_negative_noise_variance(refused, tmp_path):
    np.save(tmp_path / "t.npy", rows())
    assert "noise" in refused(tmp_path / "t.npy", "--keep", 0.5, "--noise", -1)


# 11 to 13. Depth, scale and threshold.


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--depth", 0], "depth"),
        (["--depth", 1.5], "depth"),
        (["--layer-scale", 0], "layer_scale"),
        (["--layer-scale", -0.1], "layer_scale"),
        (["--eps", 0], "eps"),
        (["--p", 0], "p"),
        (["--p", 1], "p"),
        (["--layer-scale", 0.1, "--eps", 0.5, "--depth", 2], "eps"),
    ],
)
def test_a_setting_out_of_range_is_named(jepa, tmp_path, flags, names):
    said = jepa("analyse", *save(tmp_path, rows(), rows(seed=1)), *flags, "--out", tmp_path / "r")
    assert said.code == 2
    assert names in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_both_scales_may_be_given_where_they_agree(jepa):
    said = jepa("info", "--layer-scale", 0.1, "--eps", 0.01, "--depth", 2)
    assert said.code == 0


# 14. Modal parameters that do not fit together.


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"lam": [1.0], "rho": [-0.5]}, "opposite sign"),
        ({"lam": [1.0], "rho": [0.5], "sigma2": [2.1]}, "rho sigma2 is 1.05"),
        ({"lam": [1.0], "sigma2": [-2.0]}, "variance -2"),
        ({"lam": [1.0], "sigma2": [0.0]}, "variance 0"),
        ({"lam": [1.0], "rho": [0.0]}, "rho 0"),
        ({"lam": [1.0, 2.0], "rho": [0.5]}, "2 modes and rho has 1"),
        ({"lam": [1.0]}, "says nothing"),
    ],
)
def test_modes_that_contradict_themselves(refused, tmp_path, arrays, says):
    np.savez(tmp_path / "m.npz", **arrays)
    assert says in refused(tmp_path / "m.npz")
    with pytest.raises(DataError):
        from_modes(**arrays)


# 15. Pickled objects.


class _Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was unpickled",))


def test_object_arrays_are_never_unpickled(refused, tmp_path):
    trap = np.array([_Trap()], dtype=object)
    np.savez(tmp_path / "o.npz", x=trap, y=trap, allow_pickle=True)
    assert "never read" in refused(tmp_path / "o.npz")
    np.save(tmp_path / "o.npy", trap, allow_pickle=True)
    assert "never read" in refused(tmp_path / "o.npy", "--lag", 1)


def test_a_pickle_by_another_name_is_never_unpickled(refused, tmp_path):
    for name in ("p.npy", "p.npz", "p.parquet"):
        (tmp_path / name).write_bytes(pickle.dumps(_Trap()))
        refused(tmp_path / name, "--lag", 1)


# 16. Complex numbers.


def test_complex_numbers(refused, tmp_path):
    line = refused(*save(tmp_path, rows() + 1j, rows()))
    assert "complex" in line
    with pytest.raises(DataError, match="complex"):
        paired(rows() + 1j, rows())


# 17. A group that is empty once rows are dropped.


def test_a_group_with_no_row_left(refused, tmp_path):
    frame = pd.DataFrame(rows(12, 2), columns=["a", "b"])
    frame["who"] = ["anna"] * 9 + ["bo"] * 3
    frame.loc[9:, "a"] = np.nan
    frame.to_parquet(tmp_path / "g.parquet")
    line = refused(tmp_path / "g.parquet", "--lag", 1, "--group", "who")
    assert "group bo" in line


# 18. Duplicate names.


def test_two_columns_of_one_name(refused, tmp_path):
    (tmp_path / "d.csv").write_text("a,b,a\n1,2,3\n4,5,6\n")
    assert "two columns are called 'a'" in refused(tmp_path / "d.csv", "--lag", 1)


# 19. Integers whose squares overflow.


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.int64])
def test_integers_are_converted_before_they_are_squared(kind):
    wide = np.random.default_rng(0).integers(0, 120, (50, 3))
    x = (wide * (2**22 if np.dtype(kind).itemsize >= 4 else 1)).astype(kind)
    y = np.roll(x, 1, axis=0)
    found = paired(x, y)
    expected = paired(x.astype(np.float64), y.astype(np.float64))
    np.testing.assert_array_equal(found.Sxx, expected.Sxx)
    np.testing.assert_array_equal(found.Syx, expected.Syx)


# 20. Times.


@pytest.mark.parametrize("times", [(-1, 5), (5, 1)])
def test_times_that_are_negative_or_not_sorted(refused, times):
    line = refused("--lam", 1, "--rho", 0.5, "--times", *times, verb=("curves",))
    assert "time" in line


# What else a file can be.


def test_a_file_that_is_not_there(refused, tmp_path):
    assert "no such file" in refused(tmp_path / "no.npz")


def test_a_format_that_is_not_read(refused, tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"x")
    assert ".parquet" in refused(tmp_path / "a.xlsx")


def test_a_git_lfs_pointer_is_recognised(refused, tmp_path):
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refused(tmp_path / "a.parquet")


def test_one_table_without_a_second_view(refused, tmp_path):
    np.save(tmp_path / "t.npy", rows())
    line = refused(tmp_path / "t.npy")
    assert "--lag" in line
    assert "--keep" in line


def test_a_header_that_promises_more_than_the_file_is_refused_before_allocation(refused, tmp_path):
    path = tmp_path / "big.npy"
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }"
    header = header.ljust(127 - 10) + "\n"
    magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    path.write_bytes(magic + header.encode() + b"\0" * 64)
    assert "cut off" in refused(path, "--lag", 1)
    with zipfile.ZipFile(tmp_path / "big.npz", "w") as archive:
        archive.write(path, "x.npy")
        archive.write(path, "y.npy")
    assert "cut off" in refused(tmp_path / "big.npz")


def test_what_memory_cannot_hold_is_refused_before_it_is_unpacked(refused, tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "z.npz", x=np.zeros((2000, 50)), y=np.zeros((2000, 50)))
    monkeypatch.setattr(files, "available_memory", lambda: 100_000)
    assert "memory" in refused(tmp_path / "z.npz")
    pd.DataFrame(np.zeros((3000, 9)), columns=list("abcdefghi")).to_parquet(tmp_path / "z.parquet")
    assert "memory" in refused(tmp_path / "z.parquet", "--lag", 1)


@pytest.mark.parametrize("size", [0, 1, 60, 200])
@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "parquet"])
def test_a_file_that_breaks_off(jepa, tmp_path, kind, size):
    path = tmp_path / f"t.{kind}"
    frame = pd.DataFrame(rows(), columns=["a", "b", "c"])
    {
        "npy": lambda: np.save(path, rows()),
        "npz": lambda: np.savez(path, x=rows(), y=rows()),
        "csv": lambda: frame.to_csv(path, index=False),
        "parquet": lambda: frame.to_parquet(path),
    }[kind]()
    path.write_bytes(path.read_bytes()[:size])
    said = jepa("data", "check", path, *(["--lag", 1] if kind != "npz" else []))
    # A CSV cut at the end of a value is a shorter CSV.
    assert said.code == 2 or (kind == "csv" and size == 200)
    assert "Traceback" not in said.err


@given(st.binary(max_size=300), st.sampled_from(["npy", "npz", "csv", "parquet"]))
def test_no_bytes_make_a_reader_fail_without_a_reason(tmp_path_factory, content, kind):
    path = tmp_path_factory.mktemp("bytes") / f"a.{kind}"
    path.write_bytes(content)
    with pytest.raises(JepaError):
        read(path)


@given(
    st.integers(2, 40),
    st.integers(1, 4),
    st.integers(1, 9),
    st.floats(-1e6, 1e6),
    st.integers(0, 2**32 - 1),
)
def test_running_sums_equal_the_covariances_of_all_rows(n, d, chunk, offset, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n, d)) + offset
    found = moments(slices(x, y, chunk), d)
    a, b = x - x.mean(0), y - y.mean(0)
    np.testing.assert_allclose(found.Sxx, a.T @ a / n, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.Syx, b.T @ a / n, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.Syy, b.T @ b / n, rtol=0, atol=1e-9)


def test_masks_are_checked_by_the_library_too():
    with pytest.raises(ConfigError, match="keep"):
        masked(rows(), Masks(0.0))
