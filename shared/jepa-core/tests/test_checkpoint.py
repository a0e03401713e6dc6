"""What a checkpoint holds, and that it is whole or not there."""

from __future__ import annotations

import collections
import contextlib
import json
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from jepa_core.errors import RunError
from jepa_core.optim import adamw, decay_groups
from jepa_core.training import checkpoint


class Tied(nn.Module):
    """Tied weights, a buffer that is a view of another, a counter and an empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 4, bias=False)
        self.outer.weight = self.inner.weight
        table = torch.arange(12.0).reshape(3, 4)
        self.register_buffer("table", table)
        self.register_buffer("flat", table.view(12))
        self.register_buffer("turned", table.T)
        self.register_buffer("row", table[1])
        self.register_buffer("counter", torch.tensor(3))
        self.register_buffer("empty", torch.zeros(0, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).tanh()).square().mean()


def trained(steps: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    generator = torch.Generator().manual_seed(int(module.counter))
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(5, 4, generator=generator)).backward()
        optimizer.step()
    return module


def save(folder: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    return checkpoint.write(folder, step, checkpoint.snapshot(module, optimizer), {"mine": 0.1})


def pair(**settings):
    torch.manual_seed(0)
    module = Tied()
    return module, adamw(decay_groups(module), **settings)


def test_a_checkpoint_holds_names_and_tensors_and_no_pickle(tmp_path):
    module, optimizer = pair()
    place = save(tmp_path, 7, trained(2, module, optimizer), optimizer)
    assert place.name == "step-00000007"
    files = {"model.safetensors", "optimizer.safetensors", "state.json", "DONE"}
    assert {path.name for path in place.iterdir()} == files
    with safe_open(place / "optimizer.safetensors", "pt") as file:
        kinds = ("exp_avg", "exp_avg_sq", "step")
        names = {f"{n}/{k}" for n in ("inner.weight", "inner.bias") for k in kinds}
        assert set(file.keys()) == names
        step = file.get_tensor("inner.weight/step")
        assert step.shape == ()
        assert step.dtype == torch.float32
        assert step == 2
    state = json.loads((place / "state.json").read_text())
    assert state["step"] == 7
    assert state["mine"] == 0.1
    assert state["format"] == checkpoint.FORMAT
    assert [group["names"] for group in state["groups"]] == [["inner.weight"], ["inner.bias"]]


def test_shared_memory_is_saved_once_and_views_come_back_as_they_were(tmp_path):
    module, optimizer = pair()
    place = save(tmp_path, 1, module, optimizer)
    assert json.loads((place / "state.json").read_text())["aliases"] == {
        "outer.weight": "inner.weight"
    }
    with safe_open(place / "model.safetensors", "pt") as file:
        assert "outer.weight" not in file.keys()  # noqa: SIM118
    weights = checkpoint.read_weights(tmp_path, 1)
    assert weights.keys() == module.state_dict().keys()
    assert all(torch.equal(weights[n], t) for n, t in module.state_dict().items())
    other, its_optimizer = pair()
    with torch.no_grad():
        other.inner.weight.zero_()
    checkpoint.load(tmp_path, 1, other, its_optimizer)
    assert other.outer.weight is other.inner.weight
    assert torch.equal(other.outer.weight, module.inner.weight)


def test_an_optimiser_built_with_other_values_goes_on_bit_for_bit(tmp_path):
    module, optimizer = pair(learning_rate=0.03, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.2)
    save(tmp_path, 4, trained(4, module, optimizer), optimizer)
    trained(6, module, optimizer)
    other, its_optimizer = pair(learning_rate=0.5, betas=(0.1, 0.2), eps=1.0, weight_decay=0.7)
    checkpoint.load(tmp_path, 4, other, its_optimizer)
    assert its_optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    trained(6, other, its_optimizer)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_checkpoint_is_not_bound_to_the_live_module(tmp_path):
    module, optimizer = pair()
    shot = checkpoint.snapshot(module, optimizer)
    before = shot.model["inner.weight"].clone()
    trained(1, module, optimizer)
    assert torch.equal(shot.model["inner.weight"], before)


def test_a_folder_without_done_is_no_checkpoint_and_is_cleaned_away(tmp_path):
    module, optimizer = pair()
    for step in (1, 2):
        save(tmp_path, step, module, optimizer)
    (tmp_path / "step-00000002" / "DONE").unlink()
    (tmp_path / "step-00000003.tmp-99").mkdir()
    (tmp_path / "step-00000003.tmp-99" / "DONE").touch()
    (tmp_path / "notes").mkdir()
    assert checkpoint.steps(tmp_path) == [1]
    assert checkpoint.latest(tmp_path) == 1
    checkpoint.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-00000001"]
    with pytest.raises(RunError, match="holds no checkpoint of step 2"):
        checkpoint.read_weights(tmp_path, 2)
    assert checkpoint.latest(tmp_path / "nowhere") is None


class Killed(BaseException):
    pass


def test_a_death_at_any_point_of_writing_leaves_the_last_good_one(tmp_path, monkeypatch):
    module, optimizer = pair()
    shot = checkpoint.snapshot(module, optimizer)
    calls = collections.Counter()
    points = ("save_file", "fsync")
    originals = {name: getattr(checkpoint, name) for name in points}

    def die_at(when: int) -> None:
        calls.clear()
        for name, real in originals.items():

            def step(*arguments, real=real):
                calls["all"] += 1
                if calls["all"] == when:
                    raise Killed
                return real(*arguments)

            monkeypatch.setattr(checkpoint, name, step)

    checkpoint.write(tmp_path, 1, shot, {})
    for when in range(1, 100):
        die_at(when)
        try:
            checkpoint.write(tmp_path, 2, shot, {})
            break
        except Killed:
            whole = checkpoint.steps(tmp_path)
            # The last call comes after the rename: the checkpoint is there, if not yet for sure.
            assert whole in ([1], [1, 2])
            for step in whole:
                checkpoint.read_weights(tmp_path, step)
    assert when > 6
    monkeypatch.undo()
    checkpoint.clean(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_half_deleted_checkpoint_never_looks_whole(tmp_path, monkeypatch):
    module, optimizer = pair()
    for step in (1, 2, 3):
        save(tmp_path, step, module, optimizer)

    def die(path, **_):
        (Path(path) / "model.safetensors").unlink()
        raise Killed

    monkeypatch.setattr(checkpoint.shutil, "rmtree", die)
    with pytest.raises(Killed):
        checkpoint.prune(tmp_path, keep={3})
    monkeypatch.undo()
    for step in checkpoint.steps(tmp_path):
        checkpoint.read_weights(tmp_path, step)
    checkpoint.prune(tmp_path, keep={3})
    checkpoint.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_another_model_is_refused_by_the_name_that_differs(tmp_path):
    module, optimizer = pair()
    save(tmp_path, 1, module, optimizer)
    for change, message in (
        (lambda m: m.register_buffer("more", torch.ones(1)), "it lacks more"),
        (lambda m: delattr(m, "counter"), "it has counter"),
        (lambda m: m.register_buffer("row", torch.ones(5)), r"its row is \(4,\), not \(5,\)"),
    ):
        other, its_optimizer = pair()
        change(other)
        with pytest.raises(RunError, match=message):
            checkpoint.load(tmp_path, 1, other, its_optimizer)


def test_other_groups_are_refused(tmp_path):
    module, optimizer = pair()
    save(tmp_path, 1, module, optimizer)
    other, _ = pair()
    with pytest.raises(RunError, match="groups are others"):
        checkpoint.load(tmp_path, 1, other, adamw([{"params": list(other.parameters())}]))
    other.inner.bias.requires_grad_(False)
    with pytest.raises(RunError, match=r"groups are others \(such as inner\.bias\)"):
        checkpoint.load(tmp_path, 1, other, adamw(decay_groups(other)))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff" * 64])
def test_a_damaged_file_is_named(tmp_path, name, content):
    module, optimizer = pair()
    place = save(tmp_path, 1, module, optimizer)
    (place / name).unlink()
    if content is not None:
        (place / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name}: cannot be read.*delete this checkpoint"):
        checkpoint.load(tmp_path, 1, module, optimizer)


def test_a_later_format_is_refused(tmp_path):
    module, optimizer = pair()
    path = save(tmp_path, 1, module, optimizer) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(RunError, match="format is 99"):
        checkpoint.load(tmp_path, 1, module, optimizer)


def test_too_little_space_is_said_before_training(tmp_path, monkeypatch):
    module = nn.Linear(1000, 1000, bias=False)
    usage = collections.namedtuple("usage", "total used free")
    one = 3 * 4 * 1000 * 1000  # weights and two moments in float32
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage(0, 0, 4 * one))
    checkpoint.require_space(tmp_path, module, keep=2)
    with pytest.raises(RunError, match=r"5 checkpoints need 0.06 GB and 0.048 GB are free"):
        checkpoint.require_space(tmp_path, module, keep=3)
    (tmp_path / "old").write_bytes(bytes(one))
    checkpoint.require_space(tmp_path, module, keep=3)


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 500 bytes: what a quota does, and needs no rights to set up.

    Lifted before the test ends: the test runner's own output may be a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(folder: Path) -> str:
    """The error of a third checkpoint, after which the two before must be whole and alone."""
    module, optimizer = pair()
    with pytest.raises(RunError) as caught:
        save(folder, 3, module, optimizer)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]
    checkpoint.load(folder, 2, module, optimizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_may_not_grow_stops_with_the_last_good_checkpoint(tmp_path):
    module, optimizer = pair()
    for step in (1, 2):
        save(tmp_path, step, module, optimizer)
    with small_files():
        error = refused(tmp_path)
    assert "step-00000003: the checkpoint cannot be written: " in error
    assert "File too large" in error
    assert error.endswith("step 2 is the last good one; free some space and give --resume")


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 200 kB, for those who may mount one; the test above is for those who may not."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here; the limit on a file's size stands in for it")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_stops_with_the_last_good_checkpoint(small_disk):
    module, optimizer = pair()
    folder = small_disk / "checkpoints"
    for step in (1, 2):
        save(folder, step, module, optimizer)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(10**6))
    error = refused(folder)
    assert "No space left on device" in error
    assert "step 2 is the last good one" in error
