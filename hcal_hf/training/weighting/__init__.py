"""Combines the losses of the tasks, one per level, into one loss.

Each weighter has its own module. To add one, subclass [`LossWeighter`] and register it in `WEIGHTERS`:

    WEIGHTERS["mine"] = MyWeighter

Then `HcalTrainingArguments(loss_weighting="mine", loss_weighting_kwargs={...})` builds it. The keyword arguments are
those of its `__init__`.
"""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from .base import LossWeighter
from .dwa import DwaWeighter
from .famo import FamoWeighter
from .fixed import FixedWeighter
from .gradnorm import GradNormWeighter
from .hcal import HcalWeighter
from .hcal_rate import HcalRateWeighter
from .likelihood import LikelihoodWeighter
from .uncertainty import UncertaintyWeighter
from .uniform import UniformWeighter

WEIGHTERS: dict[str, type[LossWeighter]] = {
    "dwa": DwaWeighter,
    "famo": FamoWeighter,
    "fixed": FixedWeighter,
    "gradnorm": GradNormWeighter,
    "hcal": HcalWeighter,
    "hcal_rate": HcalRateWeighter,
    "likelihood": LikelihoodWeighter,
    "uncertainty": UncertaintyWeighter,
    "uniform": UniformWeighter,
}


def check_weighter(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raises a ValueError if the name is unknown, or if an argument is unknown or missing."""
    if name not in WEIGHTERS:
        raise ValueError(
            f"loss_weighting must be one of {', '.join(sorted(WEIGHTERS))}, got {name!r}.{_closest(name, WEIGHTERS)}"
        )
    # The first parameter is the number of tasks.
    parameters = dict(list(inspect.signature(WEIGHTERS[name]).parameters.items())[1:])
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters.values()):
        return
    for key in kwargs:
        if key not in parameters:
            takes = f"takes {', '.join(parameters)}" if parameters else "takes none"
            raise ValueError(
                f"loss_weighting_kwargs has {key!r}, but loss_weighting={name!r} {takes}.{_closest(key, parameters)}"
            )
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in kwargs]
    if missing:
        raise ValueError(f"loss_weighting={name!r} needs {', '.join(missing)} in loss_weighting_kwargs.")


def build_weighter(name: str, num_tasks: int, **kwargs: Any) -> LossWeighter:
    """Builds the weighter with a name for T tasks.

    Raises:
        ValueError: if the name is unknown, or if an argument is unknown, missing or out of range.
    """
    check_weighter(name, kwargs)
    try:
        return WEIGHTERS[name](num_tasks, **kwargs)
    except TypeError as problem:
        raise ValueError(f"loss_weighting_kwargs={kwargs} do not fit loss_weighting={name!r}: {problem}.") from problem


def _closest(name: str, candidates: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" Closest: {close[0]!r}." if close else ""


__all__ = [
    "WEIGHTERS",
    "DwaWeighter",
    "FamoWeighter",
    "FixedWeighter",
    "GradNormWeighter",
    "HcalRateWeighter",
    "HcalWeighter",
    "LikelihoodWeighter",
    "LossWeighter",
    "UncertaintyWeighter",
    "UniformWeighter",
    "build_weighter",
    "check_weighter",
]
