"""What lies in the folder of an encoder or a classifier, read strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from jepa_core.config import from_dict
from jepa_core.errors import DataError
from jepa_vision.presets import PretrainConfig
from jepa_vision.weights import filled

PACKAGE = "jepa-vision"
FORMAT = 1

_M = TypeVar("_M", bound=nn.Module)


def filled_from(
    state: Mapping[str, Tensor], prefix: str, build: Callable[[], _M], where: object
) -> _M:
    """The part of the weights under a prefix, as a module; errors name the place."""
    below = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    try:
        return filled(build, below)
    except DataError as error:
        raise DataError(error.what, where=where, remedy=error.remedy) from None


def read_recipe(details: Mapping[str, Any], where: object) -> PretrainConfig:
    if details.get("format") != FORMAT:
        raise DataError(
            f"the encoder has format {details.get('format')}",
            where=where,
            remedy=f"this version of {PACKAGE} reads format {FORMAT}",
        )
    if "recipe" not in details:
        raise DataError("config.json lacks recipe", where=where)
    return from_dict(PretrainConfig, details["recipe"], where=where)
