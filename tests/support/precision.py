"""Products as a GPU makes them under TF32."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Rounded(TorchDispatchMode):
    """Products as a GPU makes them where TF32 is allowed: of factors with ten bits."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm") and reduced():
            count = 3 if "add" in func.overloadpacket.__name__ else 2
            first = count - 2
            args = (*args[:first], *(rounded(x) for x in args[first:count]), *args[count:])
        return func(*args, **(kwargs or {}))


def reduced():
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set through the newer switches
        return True


def rounded(x, bits=10):
    if x.dtype != torch.float32 or bits == 23:
        return x
    drop = 23 - bits
    whole = x.contiguous().view(torch.int32)
    return ((whole + (1 << (drop - 1))) & -(1 << drop)).view(torch.float32)


def tf32():
    torch.set_float32_matmul_precision("high")
    return Rounded()
