"""Configs are strict, and every refusal names the key and what is allowed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa_core import config
from jepa_core.config import Range
from jepa_core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Optimiser:
    lr: Annotated[float, Range(gt=0)] = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    clip: Annotated[float, Range(gt=0)] | None = None

    def __post_init__(self) -> None:
        config.check(self)


@dataclasses.dataclass(frozen=True)
class Recipe:
    depth: Annotated[int, Range(ge=1, le=64)]
    keep: Annotated[tuple[float, float], Range(ge=0, le=1)] = (0.15, 0.25)
    loss: Literal["l1", "mse"] = "l1"
    resume: bool = False
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    optimiser: Optimiser = Optimiser()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        config.check(self)


def test_a_file_gives_back_the_config_that_was_written(tmp_path: Path) -> None:
    recipe = Recipe(3, weights={"a": 1.0}, names=("x", "y"), optimiser=Optimiser(clip=0.5))
    config.write(recipe, tmp_path / "config.json")
    assert config.read(Recipe, tmp_path / "config.json") == recipe


@given(
    st.builds(
        Recipe,
        depth=st.integers(1, 64),
        keep=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        loss=st.sampled_from(["l1", "mse"]),
        resume=st.booleans(),
        weights=st.dictionaries(st.text(), st.floats(-1e9, 1e9)),
        names=st.lists(st.text()).map(tuple),
    )
)
def test_every_config_survives_json(recipe: Recipe) -> None:
    assert config.from_dict(Recipe, config.to_dict(recipe)) == recipe


@pytest.mark.parametrize(
    ("data", "key", "allowed"),
    [
        ({"depth": 3, "dept": 1}, "unknown key dept", "did you mean depth?"),
        ({"depth": 3, "optimiser": {"Lr": 1.0}}, "optimiser.Lr", "betas, clip, lr"),
        ({"depth": "3"}, "depth is '3'", "a whole number, not text"),
        ({"depth": True}, "depth is True", "a whole number"),
        ({"depth": 2.0}, "depth is 2.0", "a whole number, not a number"),
        ({"depth": 0}, "depth is 0", ">= 1 and <= 64"),
        ({"depth": 3, "optimiser": {"lr": 0}}, "optimiser.lr is 0", "> 0"),
        ({"depth": 3, "optimiser": {"lr": float("nan")}}, "optimiser.lr is nan", "a finite number"),
        ({"depth": 3, "optimiser": {"clip": -1}}, "optimiser.clip is -1", "> 0"),
        ({"depth": 3, "keep": [0.5, 1.5]}, "keep is [0.5, 1.5]", "<= 1"),
        ({"depth": 3, "keep": [0.5]}, "keep is [0.5]", "2 values"),
        ({"depth": 3, "loss": "l2"}, "loss is 'l2'", "l1, mse"),
        ({"depth": 3, "resume": 1}, "resume is 1", "true or false"),
        ({"depth": 3, "weights": {"a": "b"}}, "weights.a is 'b'", "a number, not text"),
        ({"depth": 3, "names": ["x", 4]}, "names[1] is 4", "text"),
        ({}, "missing key depth", ""),
        ([1], "Recipe must be a mapping", "not a list"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(data: object, key: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_dict(Recipe, data, where="run/config.json")
    message = str(caught.value)
    assert message.startswith("run/config.json: ")
    assert key in message
    assert allowed in message
    assert "\n" not in message


def test_no_instance_exists_with_a_bad_value() -> None:
    with pytest.raises(ConfigError, match="lr is -1"):
        Optimiser(lr=-1.0)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"{", "not valid JSON"), (b"\xff\xfe", "not UTF-8"), (None, "no such file")],
)
def test_an_unreadable_file_is_one_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        config.read(Recipe, path)
    assert str(path) in str(caught.value)
