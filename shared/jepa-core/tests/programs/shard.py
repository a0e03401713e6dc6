"""Two processes with `fully_shard` on CPUs: the toy with its EMA, saved, loaded, continued."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from toy import Records, Toy, build

from jepa_core.optim import adamw, decay_groups
from jepa_core.training import checkpoint
from jepa_core.training.sampler import Epochs

STEPS = 8


def steps(model: Toy, optimizer: torch.optim.Optimizer, begin: int, rank: int, world: int) -> None:
    source = Records()
    for step in range(begin, begin + STEPS):
        batch = source.batch(Epochs(len(source), 16, seed=3).draw(step, rank, world))
        count = batch["count"].double()
        if world > 1:
            dist.all_reduce(count)
        optimizer.zero_grad()
        # Gradients are averaged over processes, as in data-parallel training.
        (model(batch)["loss"] * batch["count"] * world / count).backward()
        optimizer.step()
        model.after_step(step)


def sharded(module: Toy) -> Toy:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (module.encoder, module.target_encoder, module.predictor):
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    assert isinstance(next(module.encoder.parameters()), DTensor)
    return module


def whole(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: t.full_tensor() if isinstance(t, DTensor) else t
        for name, t in module.state_dict().items()
    }


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    def optimiser(module: nn.Module) -> torch.optim.Optimizer:
        return adamw(decay_groups(module), betas=(0.9, 0.99), eps=1e-6)

    alone = build()
    optimizer = optimiser(alone)
    steps(alone, optimizer, 0, 0, 1)
    steps(alone, optimizer, STEPS, 0, 1)

    model = sharded(build())
    optimizer = optimiser(model)
    steps(model, optimizer, 0, rank, world)
    shot = checkpoint.snapshot(model, optimizer)
    if rank == 0:
        checkpoint.write(folder, STEPS, shot, {})
    dist.barrier()
    steps(model, optimizer, STEPS, rank, world)

    other = sharded(Toy().double())
    optimizer = optimiser(other)
    checkpoint.load(folder, STEPS, other, optimizer)
    steps(other, optimizer, STEPS, rank, world)

    states = {"whole": whole(alone), "sharded": whole(model), "again": whole(other)}
    if rank == 0:
        for name, state in states.items():
            save_file(state, folder / f"{name}.safetensors")
        (folder / "written").touch()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
