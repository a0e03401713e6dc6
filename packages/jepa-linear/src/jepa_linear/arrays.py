"""NumPy arrays and torch tensors alike, so that every formula is written once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from jepa_core.errors import DataError

# A NumPy array or a torch tensor. torch is never imported here: whoever passes a tensor has it.
Array: TypeAlias = Any

# Entries computed at once: the working arrays of a formula should stay in a core's cache. On a
# GPU only the memory of the temporaries is bounded.
_CPU_CHUNK = 2**14
_GPU_CHUNK = 2**24


def namespace(*values: Any) -> Any:
    """`torch` if any value is a tensor, else `numpy`; both name their functions alike."""
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(value, torch.Tensor) for value in values):
        return torch
    return np


def float64(value: Any, name: str, like: Any = None) -> Array:
    """The value as float64, on the device of `like` where that is a tensor.

    Raises
    ------
    DataError
        For complex numbers and anything that is no number.
    """
    xp = namespace(value, like)
    if xp is not np:
        if xp.is_tensor(value):
            if value.is_complex():
                raise DataError(f"{name} is complex; expected real numbers", where=name)
            device = value.device if like is None else like.device
            return value.to(device=device, dtype=xp.float64)
        return xp.as_tensor(float64(value, name), device=like.device)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError("rows of different lengths", where=name) from error
    if array.dtype.kind == "c":
        raise DataError(f"{name} is complex; expected real numbers", where=name)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} holds {array.dtype} values; expected real numbers", where=name)
    return array.astype(np.float64, copy=False)


def together(**values: Any) -> tuple[Any, list[Array]]:
    """The namespace, and each value as float64 on one device (that of the first tensor)."""
    xp = namespace(*values.values())
    like = None
    if xp is not np:
        like = next(value for value in values.values() if xp.is_tensor(value))
    return xp, [float64(value, name, like) for name, value in values.items()]


def to_numpy(value: Array) -> np.ndarray:
    """The array on the CPU as NumPy's."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def like(result: np.ndarray, template: Array) -> Array:
    """A NumPy result in the kind, and on the device, of the template."""
    xp = namespace(template)
    return result if xp is np else xp.as_tensor(result, device=template.device)


def elementwise(
    function: Callable[..., tuple[Array, ...]], xp: Any, depth: np.ndarray, *arrays: Array
) -> tuple[Array, ...]:
    """`function(L, *arrays)` over the broadcast of depth and arrays, a depth and a chunk at a time.

    `function` gets a Python int and flat arrays of one length (or scalars) and returns flat arrays.
    """
    shape = np.broadcast_shapes(depth.shape, *(tuple(array.shape) for array in arrays))
    flat = [_flat(xp, array, shape) for array in arrays]
    if depth.size == 1:
        results = _chunks(function, xp, int(depth.reshape(())), flat, int(np.prod(shape)))
        return tuple(result.reshape(shape) for result in results)
    each = np.broadcast_to(depth, shape).reshape(-1)
    found: tuple[Array, ...] = ()
    for one in np.unique(each):
        (where,) = np.nonzero(each == one)
        index = where if xp is np else xp.as_tensor(where, device=arrays[0].device)
        chosen = [array if array.ndim == 0 else array[index] for array in flat]
        parts = _chunks(function, xp, int(one), chosen, len(where))
        if not found:
            found = tuple(_empty(xp, part, each.size) for part in parts)
        for result, part in zip(found, parts, strict=True):
            result[index] = part
    return tuple(result.reshape(shape) for result in found)


def _chunks(
    function: Callable[..., tuple[Array, ...]], xp: Any, depth: int, flat: list[Array], size: int
) -> tuple[Array, ...]:
    on_cpu = xp is np or all(array.device.type == "cpu" for array in flat)
    step = _CPU_CHUNK if on_cpu else _GPU_CHUNK
    found: tuple[Array, ...] = ()
    for start in range(0, max(size, 1), step):
        stop = min(start + step, size)
        parts = function(
            depth, *(array if array.ndim == 0 else array[start:stop] for array in flat)
        )
        if not found:
            found = tuple(_empty(xp, part, size) for part in parts)
        for result, part in zip(found, parts, strict=True):
            result[start:stop] = part
    return found


def _flat(xp: Any, array: Array, shape: tuple[int, ...]) -> Array:
    if int(np.prod(array.shape)) == 1:
        return array.reshape(())
    return xp.broadcast_to(array, shape).reshape(-1)


def _empty(xp: Any, template: Array, size: int) -> Array:
    if xp is np:
        return np.empty(size, np.asarray(template).dtype)
    return xp.empty(size, dtype=template.dtype, device=template.device)
