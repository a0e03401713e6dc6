"""Batches for pre-training: which crops of which images, and their masks."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from jepa_core import rng
from jepa_core.errors import DataError
from jepa_core.masking.multiblock import MultiBlockSampler
from jepa_core.training.sampler import Draw
from jepa_vision.data.augment import augment
from jepa_vision.data.images import Images
from jepa_vision.data.transforms import crop_boxes, crops, normalise, warn_tiny
from jepa_vision.masks import MultiBlockMasks
from jepa_vision.presets import PretrainConfig
from jepa_vision.targets import neighbour_table

_LAST = 2**32 - 1  # counters that training never reaches


class ImageSource:
    """Random crops with multi-block masks, a pure function of the draw.

    Parameters
    ----------
    images
        What to cut from.
    config
        The recipe.
    seed
        The run's seed.

    Raises
    ------
    DataError
        There is no image, or images have another number of channels than the recipe.
    """

    def __init__(self, images: Images, config: PretrainConfig, *, seed: int) -> None:
        if not len(images):
            raise DataError("there is no image")
        if images.channels != config.model.channels:
            raise DataError(
                f"the images have {images.channels} channels, the recipe {config.model.channels}",
                remedy="set model.channels, augment.mean and augment.std",
            )
        self.images, self.config, self.seed = images, config, seed
        self._sizes = images.sizes
        warn_tiny(self._sizes, config.model.image)
        self._official = MultiBlockMasks(config.model.grid, config.masks)
        self._masks = mask_sampler(config)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """A batch as `ImageJEPA` takes it."""
        batch = self._blocks(draw.keys, draw.counters, draw.step)
        batch["image"] = self._images(draw.ids, draw.keys, draw.counters)
        dmt = self.config.dmt
        if self.config.method == "dmt-jepa" and dmt.choice == "random":
            batch["noise"] = self._noise(draw.keys, draw.counters)
        return batch

    def health_batch(self, samples: int = 256, views: int = 8) -> dict[str, Tensor]:
        """A fixed batch for the health of the run, with `views` contexts of its first images.

        The images are spread evenly over the set.
        """
        count = min(samples, len(self))
        ids = np.linspace(0, len(self) - 1, count).astype(np.int64)
        batch = self.batch(Draw(_LAST, ids, ids, np.full(count, _LAST)))
        seen = min(count, 64)
        # Views are compared, so they are of one size: the shortest of all.
        each = [
            self._blocks(ids[:seen], np.full(seen, _LAST - view), _LAST - view)
            for view in range(1, views + 1)
        ]
        shortest = min(
            int(view["context_lengths"][0].min())
            if "context_lengths" in view
            else view["context"].shape[2]
            for view in each
        )
        batch["views"] = torch.stack([view["context"][0, :, :shortest] for view in each], 1)
        return batch

    def _blocks(
        self,
        keys: Int64[np.ndarray, " batch"],
        counters: Int64[np.ndarray, " batch"],
        step: int,
    ) -> dict[str, Tensor]:
        if self.config.masks.compat == "official":
            generator = torch.Generator().manual_seed(_mixed(self.seed, step, keys))
            contexts, targets = self._official.sample(len(keys), step, generator)
            batch = {"context": torch.stack(contexts), "target": torch.stack(targets)}
        else:
            sets, target = self._masks(keys, counters, step=step, seed=self.seed)
            longest = max(s.indices.shape[1] for s in sets)
            batch = {
                "context": torch.stack([_widened(s.indices.long(), longest) for s in sets]),
                "target": target,
            }
            lengths = torch.stack([s.lengths for s in sets])
            if int(lengths.min()) < longest:
                batch["context_lengths"] = lengths
        batch["union"], batch["place"] = _union(batch["target"], *self.config.model.grid)
        return batch

    def _images(
        self,
        ids: Int64[np.ndarray, " batch"],
        keys: Int64[np.ndarray, " batch"],
        counters: Int64[np.ndarray, " batch"],
    ) -> Tensor:
        config = self.config.augment
        boxes = crop_boxes(
            self._sizes[ids],
            keys,
            counters,
            seed=self.seed,
            scale=config.crop_scale,
            ratio=config.crop_ratio,
        )
        exact = self.config.masks.compat == "official"
        cut = crops(self.images, ids, boxes, self.config.model.image, exact=exact)
        if config.flip or config.jitter or config.blur:
            cut = augment(cut, keys, counters, config, seed=self.seed)
        return torch.from_numpy(normalise(cut, config.mean, config.std))

    def _noise(
        self, keys: Int64[np.ndarray, " batch"], counters: Int64[np.ndarray, " batch"]
    ) -> Tensor:
        dmt = self.config.dmt
        table = neighbour_table(*self.config.model.grid, dmt.window, dmt.border)
        words = rng.words(self.seed, "neighbours", keys, counters, table.numel())
        return torch.from_numpy(rng.uniform32(words)).unflatten(1, table.shape)


def mask_sampler(config: PretrainConfig) -> MultiBlockSampler:
    """The sound masks of a recipe."""
    masks = config.masks
    return MultiBlockSampler(
        config.model.grid,
        contexts=masks.contexts,
        targets=masks.targets,
        context_scale=masks.context_scale,
        target_scale=masks.target_scale,
        target_aspect=masks.target_aspect,
        min_keep=masks.min_keep,
        overlap=masks.overlap,
    )


def _mixed(seed: int, step: int, keys: Int64[np.ndarray, " batch"]) -> int:
    """A seed for the official sampler, which draws image after image from one stream."""
    low, high = rng.words(seed, "official", keys[:1], step, 2)[0].tolist()
    return high >> 1 << 32 | low


def _widened(indices: Int64[Tensor, "batch k"], longest: int) -> Int64[Tensor, "batch longest"]:
    return torch.nn.functional.pad(indices, (0, longest - indices.shape[1]))


def _union(
    target: Int64[Tensor, "targets batch m"], rows: int, cols: int
) -> tuple[Int64[Tensor, "batch u"], Int64[Tensor, "targets batch m"]]:
    """The patches in any target of an image, ascending, and where each target's are among them.

    Images with fewer than others repeat patch 0 at the end. The number is a multiple of 4, because
    code is made for every number of rows that is met.
    """
    batch = target.shape[1]
    inside = torch.zeros(batch, rows * cols, dtype=torch.bool)
    inside.scatter_(1, target.transpose(0, 1).flatten(1), True)
    rank = inside.cumsum(1)
    longest = min(rows * cols, -(-int(rank[:, -1].max()) // 4) * 4)
    row, patch = inside.nonzero(as_tuple=True)
    union = torch.zeros(batch, longest, dtype=torch.int64)
    union[row, rank[row, patch] - 1] = patch
    place = (rank - 1).expand(len(target), -1, -1).gather(2, target)
    return union, place
