"""Candidates, choice and aggregation of neighbours, and the ways in which they may be varied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_core.errors import ConfigError
from jepa_vision.head import AggregationHead, PaperHead
from jepa_vision.model import ImageJEPA, build_head
from jepa_vision.presets import DMTConfig, MaskConfig, ModelConfig, PretrainConfig
from jepa_vision.targets import aggregate, neighbour_table, select_neighbours

Data = Callable[[str], Path]
MODEL = ModelConfig(
    image=(32, 40), patch=8, dim=16, depth=1, heads=2, predictor_dim=16, predictor_depth=1
)
CONFIG = PretrainConfig(model=MODEL, masks=MaskConfig(min_keep=0))


@pytest.mark.parametrize(
    ("patches", "window"), [(36, 3), (196, 3), (256, 3), (36, 5), (196, 5), (196, 14)]
)
def test_a_grid_that_goes_on_at_its_other_side_has_the_official_neighbours(
    data: Data, patches: int, window: int
) -> None:
    golden = np.load(data("vision") / "golden" / "golden_neighbour_tables.npz")
    side = round(patches**0.5)
    table = neighbour_table(side, side, window, "wrap")
    np.testing.assert_array_equal(table.numpy(), golden[f"n{patches}_k{window}"])


def test_patch_0_of_a_torus_of_14_has_the_published_neighbours() -> None:
    assert neighbour_table(14, 14, 3, "wrap")[0].tolist() == [1, 13, 14, 15, 27, 182, 183, 195]


@given(
    rows=st.integers(1, 7),
    cols=st.integers(2, 7),
    window=st.sampled_from([3, 5, 9]),
    border=st.sampled_from(["clip", "wrap"]),
)
def test_neighbours_are_the_patches_of_the_square_each_once(
    rows: int, cols: int, window: int, border: str
) -> None:
    table = neighbour_table(rows, cols, window, border)  # type: ignore[arg-type]
    radius = window // 2
    for i in range(rows):
        for j in range(cols):
            expected = set()
            for a in range(-radius, radius + 1):
                for b in range(-radius, radius + 1):
                    if border == "wrap":
                        expected.add((i + a) % rows * cols + (j + b) % cols)
                    elif 0 <= i + a < rows and 0 <= j + b < cols:
                        expected.add((i + a) * cols + j + b)
            expected.discard(i * cols + j)
            row = table[i * cols + j]
            assert row[row >= 0].tolist() == sorted(expected)
            assert (row[len(expected) :] == -1).all()


def test_a_grid_without_neighbours_is_refused() -> None:
    with pytest.raises(ConfigError, match="no neighbour"):
        neighbour_table(1, 1)
    with pytest.raises(ConfigError, match="9 neighbours of 8 candidates"):
        select_neighbours(torch.randn(1, 9, 4), neighbour_table(3, 3), 9)


def test_the_choice_is_by_cosine_and_ties_go_to_the_first_candidate() -> None:
    h = torch.zeros(1, 9, 2)
    h[0, :, 0] = 1
    h[0, 8] = torch.tensor([7.0, 7.0])
    index, similarity = select_neighbours(h, neighbour_table(3, 3), 4)
    assert index[0, 4].tolist() == [0, 1, 2, 3]  # all but the last are equal
    assert similarity[0, 4, -1].item() == pytest.approx(0.5**0.5)
    assert index[0, 0].tolist() == [1, 3, 4, -1]  # a corner has three candidates
    assert similarity[0, 0, 3:].eq(-torch.inf).all()


def test_the_choice_does_not_depend_on_the_precision_around_it() -> None:
    h = torch.randn(2, 36, 8)
    table = neighbour_table(6, 6)
    plain, _ = select_neighbours(h, table, 4)
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = select_neighbours(h, table, 4)
    assert torch.equal(plain, low)


@pytest.mark.parametrize("query", ["mean", "patch"])
@pytest.mark.parametrize("neighbours", [4, 5])
def test_the_head_equals_its_blocks_written_out(query: str, neighbours: int) -> None:
    """The official form: five tokens a patch, of which the first asks."""
    torch.manual_seed(0)
    head = AggregationHead(16, 4).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    h = torch.randn(2, 20, 16, dtype=torch.float64)
    index, _ = select_neighbours(h, neighbour_table(4, 5), neighbours)
    fast = aggregate(head, h, index, query=query)  # type: ignore[arg-type]
    for b in range(2):
        for n in range(20):
            few = [h[b, int(i)] for i in index[b, n] if i >= 0]
            y = h[b].mean(0) if query == "mean" else h[b, n]
            for block in head.blocks:
                u = block.norm1(torch.stack([y, *few]))
                q = block.q(u[0]).view(4, 1, 4)
                k, v = (m(u).view(-1, 4, 4).transpose(0, 1) for m in (block.k, block.v))
                weights = (q @ k.transpose(1, 2) / 2).softmax(-1)
                y = y + block.proj((weights @ v).flatten())
                y = y + block.mlp(block.norm2(y))
            torch.testing.assert_close(fast[b, n], head.norm(y), rtol=0, atol=1e-12)


def test_targets_without_a_head_are_the_mean_or_maximum_of_the_neighbours() -> None:
    h = torch.randn(2, 20, 16)
    index, _ = select_neighbours(h, neighbour_table(4, 5), 4)
    mean, largest = aggregate(None, h, index), aggregate(None, h, index, pool="max")
    for n in (0, 7, 19):
        few = h[1, index[1, n][index[1, n] >= 0]]
        torch.testing.assert_close(mean[1, n], few.mean(0))
        torch.testing.assert_close(largest[1, n], few.max(0).values)
    for aggregator in ("mean", "max"):
        assert build_head(replace(CONFIG, dmt=DMTConfig(aggregator=aggregator))) is None  # type: ignore[arg-type]


def test_the_papers_head_is_one_attention_over_values_as_they_came() -> None:
    torch.manual_seed(0)
    head = PaperHead(16, 2)
    h = torch.randn(1, 20, 16)
    index, _ = select_neighbours(h, neighbour_table(4, 5), 4)
    values = aggregate(head, h, index)
    n = 7
    few = h[0, index[0, n]]
    q = head.q(h[0].mean(0)).view(2, 1, 8)
    k, v = (x.view(4, 2, 8).transpose(0, 1) for x in (head.k(few), few))
    answer = ((q @ k.transpose(1, 2)) / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(values[0, n], head.norm(answer.flatten()))
    assert isinstance(build_head(replace(CONFIG, dmt=DMTConfig(aggregator="paper"))), PaperHead)


def shares(config: PretrainConfig) -> float:
    """Share of the targets' variance that lies between the patches of an image."""
    torch.manual_seed(0)
    module = ImageJEPA(config, steps=10)
    y = module.targets(torch.randn(16, 3, 32, 40))
    return (y.var(1, correction=0).sum() / y.flatten(0, 1).var(0, correction=0).sum()).item()


def test_targets_of_the_mean_query_start_as_constants_of_the_image_and_others_do_not() -> None:
    papers = replace(CONFIG, dmt=DMTConfig(query="mean"))
    assert shares(papers) < 0.05
    assert shares(CONFIG) > 0.5
    assert shares(replace(CONFIG, method="i-jepa")) > 0.5
    assert shares(replace(CONFIG, dmt=DMTConfig(aggregator="mean"))) > 0.5


def test_a_patch_may_be_among_its_own_keys() -> None:
    module = ImageJEPA(replace(CONFIG, dmt=DMTConfig(include_self=True)), steps=10)
    index = module.neighbours(torch.randn(2, 20, 16), (4, 5))
    assert index.shape == (2, 20, 5)
    assert index[..., -1].tolist() == [list(range(20))] * 2


def test_random_neighbours_follow_the_noise_not_the_features() -> None:
    table = neighbour_table(4, 5)
    noise = torch.rand(2, 20, 8)
    h, other = torch.randn(2, 2, 20, 16)
    first, _ = select_neighbours(h, table, 4, noise=noise)
    second, _ = select_neighbours(other, table, 4, noise=noise)
    assert torch.equal(first, second)
    again, _ = select_neighbours(h, table, 4, noise=1 - noise)
    assert not torch.equal(first, again)


def test_targets_turn_from_tokens_into_aggregates_over_the_warm_up() -> None:
    torch.manual_seed(0)
    module = ImageJEPA(replace(CONFIG, dmt=DMTConfig(query="mean", warmup=0.5)), steps=10)
    image = torch.randn(2, 3, 32, 40)
    tokens = torch.nn.functional.layer_norm(module.target_encoder(image), (16,))
    torch.testing.assert_close(module.targets(image), tokens)
    module.done.fill_(5)
    full = module.targets(image)
    assert (full - tokens).abs().max() > 0.1
    module.done.fill_(2)
    torch.testing.assert_close(module.targets(image), torch.lerp(tokens, full, 0.4))
    module.after_step(2)
    assert module.state_dict()["done"].item() == 3


def test_the_variance_floor_teaches_the_head_alone() -> None:
    torch.manual_seed(0)
    module = ImageJEPA(replace(CONFIG, dmt=DMTConfig(query="mean", variance_floor=1.0)), steps=10)
    floor = module._between_patches({"image": torch.randn(2, 3, 32, 40)})
    assert floor.item() > 0.3  # nearly constant within an image at the start
    floor.backward()
    assert module.head is not None
    assert all(p.grad is not None for p in module.head.parameters())
    assert all(p.grad is None for p in module.encoder.parameters())
