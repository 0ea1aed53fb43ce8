"""Operations and synchronisations of a step, counted."""

from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.stepping import make_params

SYNCHRONISING = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "masked_select",
    "is_nonzero",
    "unique_consecutive",
    "_unique2",
}


class Counter(TorchDispatchMode):
    """Operations that compute, one launch each on a GPU; views compute nothing."""

    def __init__(self):
        super().__init__()
        self.operations, self.synchronisations = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aliases = [result.alias_info for result in func._schema.returns]
        self.operations += not aliases or any(alias is None or alias.is_write for alias in aliases)
        name = func.overloadpacket.__name__
        if name in SYNCHRONISING:
            self.synchronisations.append(name)
        return func(*args, **(kwargs or {}))


def small_matrices(per_shape, shapes=9):
    """`shapes` shapes of LoKr and LoRA factors, `per_shape` matrices of each."""
    rank, found = 4, {}
    for module in range(per_shape):
        for width in range(3):
            base = f"lora_unet_m{module}_w{width}"
            found[f"{base}.lora_down.weight"] = (rank, 8 * (width + 1))
            found[f"{base}.lora_up.weight"] = (12 * (width + 1), rank)
            found[f"{base}_k.lokr_w1"] = (4 + width, 4)
            found[f"{base}_k.lokr_w2"] = (4 + width, 4)
    assert len(set(found.values())) == shapes
    return make_params(shapes=found)
