"""Tell optimizers what a parameter is, by attributes of the tensor that the trainers do not set.

Ours read alpha / rank of the module (`parameters.members.SCALE`); adv_optm's read what is below.

Read off adv_optm 2.5.16: `_is_lora_A`, `_is_lora_B` (scaling and centred decay; Kourkoutas-beta sums over dim 1 or 0
and expects a matrix), `_is_dora_scale`, `is_vector`. `_is_oft` means rows of packed triangles there, which neither
LyCORIS nor sd-scripts has; `is_hidden` is true where it is not set.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from hina_kohya.parameters.members import SCALE
from hina_kohya.parameters.role_table import Kind
from hina_kohya.parameters.roles import Member

_MATRIX = 2


def attach_scales(network: nn.Module) -> None:
    """sd-scripts', musubi-tuner's and LyCORIS's modules all have `scale`; with rs_lora it is alpha / sqrt(rank)."""
    for module in network.modules():  # from the outside in, so that the nearest module's counts
        scale = getattr(module, "scale", None)
        if isinstance(scale, (int, float)) and scale > 0:
            for param in module.parameters():
                setattr(param, SCALE, float(scale))


def attach(members: Iterable[Member], params: Iterable[Tensor]) -> None:
    for member, param in zip(members, params, strict=True):
        role = member.role
        if role.kind is Kind.FACTOR and role.side and param.ndim == _MATRIX:
            setattr(param, f"_is_lora_{role.side}", True)
        elif role.name == "dora_scale":
            param._is_dora_scale = True  # type: ignore[attr-defined]
        elif role.kind in (Kind.SCALE, Kind.NORM, Kind.BIAS):
            param.is_vector = True  # type: ignore[attr-defined]
