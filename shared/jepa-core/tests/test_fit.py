"""The training loop, in one process."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from jepa_core.errors import ConfigError, MissingExtra, RunError
from jepa_core.health import Candidate, choose_checkpoint
from jepa_core.progress import Progress
from jepa_core.training import checkpoint, device
from jepa_core.training.fit import bfloat16_is_native
from jepa_core.training.sampler import Epochs
from jepa_core.training.watch import may_be_chosen

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "programs" / "toy.py")
assert _spec is not None
assert _spec.loader is not None
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


def largest_difference(one: nn.Module, two: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def test_fit_equals_the_loop_written_out():
    steps, rate = 12, 1e-2
    module = toy.build()
    matrices = [p for n, p in module.named_parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for n, p in module.named_parameters() if p.requires_grad and p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors}], betas=(0.9, 0.99))
    source, losses, norms = toy.Records(), [], []
    for step in range(steps):
        for group, decay in zip(optimizer.param_groups, (0.1 + step / steps, 0.0), strict=True):
            group.update(lr=rate * (1 - step / steps), weight_decay=decay, eps=1e-6)
        optimizer.zero_grad()
        loss = module(source.batch(Epochs(len(source), 8, seed=3).draw(step)))["loss"]
        loss.backward()
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in matrices + vectors)))
        for parameter in matrices + vectors:
            parameter.grad *= min(1.0, 0.05 / (norms[-1] + 1e-6))
        optimizer.step()
        with torch.no_grad():
            online = module.encoder.parameters()
            for target, parameter in zip(module.target_encoder.parameters(), online, strict=True):
                target.copy_(0.9 * target + 0.1 * parameter)
        losses.append(loss.item())

    result, fitted = toy.train(steps=steps, health=False, clip_norm=0.05)
    assert max(norms) > 0.05  # so that something was clipped
    assert [line["loss"] for line in result.history] == pytest.approx(losses, abs=1e-12)
    assert [line["grad_norm"] for line in result.history] == pytest.approx(norms, abs=1e-12)
    assert largest_difference(fitted, module) < 1e-12
    assert result.step == result.chosen_step == steps
    assert result.main


def test_the_first_update_has_the_scheduled_value_of_step_0():
    untouched = toy.build()
    _, module = toy.train(rate=0.0, health=False)
    assert largest_difference(module, untouched) == 0.0
    result, _ = toy.train(rate=0.5, steps=4, health=False)
    assert [line["learning_rate"] for line in result.history] == [0.5, 0.375, 0.25, 0.125]
    assert [line["weight_decay"] for line in result.history] == [0.1, 0.35, 0.6, 0.85]


def test_accumulated_parts_equal_the_whole_batch_though_their_masks_are_ragged():
    whole, one = toy.train(batch=24, health=False)
    parts, many = toy.train(batch=24, accumulation=4, health=False)
    assert largest_difference(one, many) < 1e-12
    for mine, theirs in zip(whole.history, parts.history, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-12)


class Uncounted(toy.Records):
    def batch(self, draw):
        return {name: value for name, value in super().batch(draw).items() if name != "count"}


def test_a_mean_of_means_would_not_equal_the_whole_batch():
    _, one = toy.train(batch=24, health=False, source=Uncounted())
    _, many = toy.train(batch=24, accumulation=4, health=False, source=Uncounted())
    assert largest_difference(one, many) > 1e-4


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_bit(workers):
    _, one = toy.train(steps=6, health=False)
    _, other = toy.train(steps=6, health=False, workers=workers)
    assert largest_difference(one, other) == 0.0


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(ConfigError, match="multiple of 1 processes times 3"):
        toy.train(batch=8, accumulation=3)


class Reads(TorchDispatchMode):
    """Counts the values that travel from a tensor to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.floats = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.floats += args[0].is_floating_point()
        return function(*args, **(kwargs or {}))


def test_no_step_reads_a_value_but_the_one_that_logs():
    # The counts of terms are integers that never leave the host.
    with Reads() as reads:
        toy.train(steps=5, health=False, log_every=100)
    once = reads.floats
    with Reads() as reads:
        toy.train(steps=25, health=False, log_every=100)
    assert reads.floats == once


def test_dropout_draws_are_a_function_of_the_step_and_the_seed():
    _, one = toy.train(toy.build(0.5), health=False)
    torch.rand(100)
    _, two = toy.train(toy.build(0.5), health=False)
    _, three = toy.train(toy.build(0.5), health=False, seed=1)
    assert largest_difference(one, two) == 0.0
    assert largest_difference(one, three) > 0.0


# Precision and devices


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("fpu avx2 fma", False),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("avx2 avx512_bf16", True),
        ("amx_bf16 amx_tile", True),
        ("", False),
    ],
)
def test_bfloat16_on_a_cpu_needs_a_unit_for_it(flags, native, tmp_path, monkeypatch):
    assert bfloat16_is_native("cpu", frozenset(flags.split())) is native
    (tmp_path / "cpuinfo").write_text(f"model name\t: X\nflags\t\t: {flags}\nflags\t\t: other\n")
    assert device.cpu_flags(str(tmp_path / "cpuinfo")) == frozenset(flags.split())
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags.split()))
    low, why_not = device.autocast_to_bfloat16("bfloat16", "cpu")
    assert low is native
    assert ("no units for bfloat16" in why_not) is not native
    assert device.autocast_to_bfloat16("float32", "cpu") == (False, "")


def test_without_a_list_of_flags_bfloat16_is_off():
    assert device.cpu_flags("/nowhere") == frozenset()


class Seen(toy.Toy):
    def forward(self, batch):
        self.low = torch.is_autocast_enabled("cpu")
        return super().forward(batch)


@pytest.mark.parametrize("flags", ["avx2", "avx2 avx512_bf16"])
def test_fit_autocasts_where_there_is_a_unit_and_says_so_where_not(flags, monkeypatch, capsys):
    monkeypatch.setattr(device, "cpu_flags", lambda: frozenset(flags.split()))
    module = Seen()
    source = toy.Records(dtype="float32")
    toy.train(module, precision="bfloat16", steps=2, health=False, source=source)
    assert module.low is ("avx512_bf16" in flags)
    assert ("computing in float32" in capsys.readouterr().err) is not module.low
    assert module.encoder[0].weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_one_line(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"device is {name}, and this machine offers none"):
        toy.train(device=name)
    assert device.find_device("auto") == "cpu"


def test_sharding_on_a_cpu_is_refused_instead_of_silently_left_out(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"FSDP.*needs GPUs.*without --use_fsdp"):
        toy.train()


@pytest.mark.gpu
def test_a_gpu_trains_as_the_cpu_does():
    class OnDevice(toy.Toy):
        def predict(self, x, hidden):
            with x.device:
                return super().predict(x, hidden)

        def observe(self, batch):
            with batch["x"].device:
                return super().observe(batch)

    torch.manual_seed(0)
    _, module = toy.train(OnDevice().double(), device="cuda", workers=1)
    _, other = toy.train()
    assert largest_difference(module.cpu(), other) < 1e-9


def test_threads_are_set():
    toy.train(steps=1, health=False, threads=1)
    assert torch.get_num_threads() == 1


# Losses that are not finite


class Breaks(toy.Toy):
    at = 5

    def forward(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        output = super().forward(batch)
        return output | {"loss": output["loss"] * (math.nan if self.calls > self.at else 1.0)}


def test_a_loss_that_is_not_finite_stops_the_run_with_what_was_good(tmp_path, capsys):
    run = toy.create(tmp_path / "run")
    result, _ = toy.train(Breaks().double(), run, checkpoint_every=2, steps=20, health=False)
    assert result.step == 6
    assert result.chosen_step == 4
    assert result.alarm.reason == "nonfinite"
    assert result.alarm.alarm_step == 6
    assert checkpoint.latest(run.checkpoints) == 4
    assert [line["loss"] is None for line in run.metrics()] == [False] * 5 + [True]
    said = capsys.readouterr().err
    assert "ALARM at step 6: the loss or the features are not finite" in said
    assert "lower the learning rate" in said
    assert "stopped at step 6" in said
    assert json.loads(run.health_path.read_text())["chosen_step"] == 4


@pytest.mark.parametrize("folder", [True, False])
def test_a_loss_that_is_never_finite_is_an_error(tmp_path, folder):
    module = Breaks().double()
    module.at = 0
    with pytest.raises(RunError, match="not finite at step 1, and no checkpoint was kept"):
        toy.train(module, toy.create(tmp_path / "run") if folder else None, health=False)


# Health


class Watched(toy.Toy):
    def observe(self, batch):
        assert not torch.is_grad_enabled()
        assert not any(part.training for part in self.modules())
        self.looks = [*getattr(self, "looks", []), int(self.steps_done)]
        return super().observe(batch)

    def __init__(self) -> None:
        super().__init__()
        self.steps_done = torch.tensor(0)
        self.target_encoder.eval()

    def after_step(self, step: int) -> None:
        assert self.encoder.training
        self.steps_done = torch.tensor(step + 1)
        super().after_step(step)


def test_health_is_looked_at_51_times_in_evaluation_mode_and_never_trained_on():
    module = Watched().double()
    result, _ = toy.train(module, steps=100)
    assert module.looks == list(range(0, 101, 2))
    lines = [line for line in result.history if "health/unexplained" in line]
    assert [line["step"] for line in lines] == module.looks
    assert module.training
    plain = Watched().double()
    plain.load_state_dict(toy.build().state_dict())
    other = toy.build()
    toy.train(plain, steps=10)
    toy.train(other, steps=10, health=False)
    assert largest_difference(plain, other) == 0.0


def test_health_comes_with_every_checkpoint_and_as_often_as_asked(tmp_path):
    module = Watched().double()
    toy.train(module, toy.create(tmp_path), steps=30, health_every=10, checkpoint_every=7)
    assert module.looks == [0, 7, 10, 14, 20, 21, 28, 30]


class Collapses(toy.Toy):
    """From step 30 on the encoders give the same whatever they see."""

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if step >= 30:
            with torch.no_grad():
                for parameter in (*self.encoder.parameters(), *self.target_encoder.parameters()):
                    parameter.zero_()


def test_a_collapse_is_said_once_with_advice_and_the_checkpoint_before_it_is_chosen(
    tmp_path, capsys
):
    run = toy.create(tmp_path)
    result, _ = toy.train(Collapses().double(), run, steps=100, checkpoint_every=5)
    said = capsys.readouterr().err
    assert said.count("ALARM") == 1
    assert "ALARM at step 34: the features no longer depend on the sample" in said
    assert "raise the EMA momentum" in said
    assert result.alarm.alarm_step == 34
    assert result.alarm.reason == "const"
    assert result.chosen_step <= 29
    assert result.chosen_step in checkpoint.steps(run.checkpoints)
    health = json.loads(run.health_path.read_text())
    assert health["chosen_step"] == result.chosen_step
    assert health["latest_step"] == 100
    assert health["alarm_step"] == 34
    state = checkpoint.read_state(run.checkpoints, 100)
    assert state["health"]["alarm"]["alarm_step"] == 34


@given(seed=st.integers(0, 2**32), total=st.integers(20, 120), every=st.integers(1, 4))
def test_what_is_kept_always_holds_what_would_be_chosen_had_all_been_kept(seed, total, every):
    chance = random.Random(seed)
    scores = {s: chance.choice([chance.random(), 0.5]) for s in range(every, total + 1, every)}
    end, warning = (chance.choice([-1, chance.randint(1, total)]) for _ in range(2))
    everything, kept = [], []
    for step, score in scores.items():
        so_far = [when if when <= step else -1 for when in (end, warning)]
        everything.append(Candidate(step, score))
        kept.append(everything[-1])
        left = may_be_chosen(kept, total, step, *so_far)
        kept = [candidate for candidate in kept if candidate.step in left or candidate.step == step]
        later = [-1, *range(step + 1, step + total // 10)]
        for alarm in later if so_far[0] < 0 else so_far[:1]:
            for warned in later if so_far[1] < 0 else so_far[1:]:
                chosen = choose_checkpoint(kept, total, alarm, warned).step
                assert chosen == choose_checkpoint(everything, total, alarm, warned).step


def test_the_last_two_and_the_best_are_kept(tmp_path):
    run = toy.create(tmp_path)
    result, _ = toy.train(run=run, steps=40, checkpoint_every=4, keep=2)
    candidates = json.loads(run.health_path.read_text())["checkpoints"]
    best = min(candidates, key=lambda c: c["unexplained"])["step"]
    assert result.chosen_step == best
    assert {36, 40, best} <= set(checkpoint.steps(run.checkpoints))
    assert len(checkpoint.steps(run.checkpoints)) <= 4


def test_without_health_the_last_checkpoint_is_taken(tmp_path):
    run = toy.create(tmp_path)
    result, module = toy.train(run=run, health=False, steps=10, checkpoint_every=4, keep=1)
    assert result.chosen_step == 10
    assert checkpoint.steps(run.checkpoints) == [10]
    weights = checkpoint.read_weights(run.checkpoints, 10)
    assert all(torch.equal(weights[name], t) for name, t in module.state_dict().items())


# What is said


def test_metrics_hold_every_value_by_name(tmp_path):
    run = toy.create(tmp_path)
    result, _ = toy.train(run=run, steps=7, log_every=3, checkpoint_every=5, health=False)
    lines = list(run.metrics())
    assert [line["step"] for line in lines] == [3, 5, 6, 7]
    assert lines == result.history
    assert lines[0].keys() == {
        *("step", "loss", "largest", "grad_norm", "learning_rate", "weight_decay"),
        *("steps_per_second", "data_wait"),
    }
    assert 0 <= lines[0]["data_wait"] <= 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def show(durations: list[float], *, terminal: bool) -> str:
    screen, clock = io.StringIO(), Clock()
    console = Console(file=screen, force_terminal=terminal, width=120)
    with Progress("training", 1000, 100, console=console, clock=clock) as progress:
        for done, duration in enumerate(durations, start=101):
            clock.now += duration
            progress.update(done, f"loss {1 / done:.4f}")
    return screen.getvalue()


def test_nothing_is_shown_of_what_takes_less_than_two_seconds():
    assert show([0.1] * 19, terminal=False) == ""
    assert show([0.1] * 19, terminal=True) == ""


def test_without_a_terminal_plain_lines_say_rate_and_time_left():
    lines = show([2.0] * 20, terminal=False).splitlines()
    assert lines == [
        "training 101/1000, 0.5/s, 29:58 left, loss 0.0099",
        "training 116/1000, 0.5/s, 29:28 left, loss 0.0086",
        "training 120/1000, 0.5/s, 29:20 left, loss 0.0083",
    ]


def test_on_a_terminal_a_bar_says_rate_and_time_left():
    shown = show([20.0] * 3, terminal=True)
    assert "103/1000" in shown
    assert "0.05/s, 4:59:00 left, loss" in shown


def test_a_word_is_printed_as_it_is():
    screen = io.StringIO()
    Progress("x", 1, console=Console(file=screen)).say("ALARM [red]at[/red] 5")
    assert screen.getvalue() == "ALARM [red]at[/red] 5\n"


def test_tensorboard_receives_the_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = toy.create(tmp_path, steps=4, name="x")
    result, _ = toy.train(run=run, steps=4, trackers=("tensorboard",), health=False)
    events = EventAccumulator(str(tmp_path / "trackers" / "jepa"))
    events.Reload()
    scalars = {event.step: event.value for event in events.Scalars("loss")}
    expected = {line["step"]: line["loss"] for line in result.history}
    assert scalars == pytest.approx(expected, rel=1e-6)


def test_a_tracker_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def absent(name, *arguments, **settings):
        if name.partition(".")[0] == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'")
        return real(name, *arguments, **settings)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(MissingExtra, match=r'pip install "jepa-core\[trackers\]"'):
        toy.train(run=toy.create(tmp_path), trackers=("wandb",))


def test_trackers_without_a_folder_are_refused():
    with pytest.raises(ConfigError, match="trackers need a run folder"):
        toy.train(trackers=("tensorboard",))


def test_a_disk_that_is_too_small_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("", (), {"free": 1000}))
    run = toy.create(tmp_path)
    with pytest.raises(RunError, match="4 checkpoints need"):
        toy.train(run=run)
    assert list(run.metrics()) == []
