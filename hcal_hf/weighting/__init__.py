"""Loss weighters: how the losses of the tasks (one a level) become one.

Each weighter is a module of its own. Add one by subclassing [`LossWeighter`] and entering it in `WEIGHTERS`:

    WEIGHTERS["mine"] = MyWeighter
"""

from typing import Any

from .base import LossWeighter
from .hcal import HcalWeighter
from .uniform import UniformWeighter

WEIGHTERS: dict[str, type[LossWeighter]] = {
    "hcal": HcalWeighter,
    "uniform": UniformWeighter,
}


def build_weighter(name: str, num_tasks: int, **kwargs: Any) -> LossWeighter:
    """The weighter of a name, for T tasks.

    Raises:
        ValueError: for an unknown name or an argument that the weighter does not take.
    """
    if name not in WEIGHTERS:
        raise ValueError(f"loss_weighting must be one of {sorted(WEIGHTERS)}, got {name!r}.")
    try:
        return WEIGHTERS[name](num_tasks, **kwargs)
    except TypeError as problem:
        raise ValueError(f"loss_weighting_kwargs={kwargs} do not fit loss_weighting={name!r}: {problem}.") from problem


__all__ = ["WEIGHTERS", "HcalWeighter", "LossWeighter", "UniformWeighter", "build_weighter"]
