"""The change of each weight, built in full from the definitions of the algorithms, in float64; slow and short."""

import torch
from safetensors.torch import load_file


def dense(path, weight=1.0):
    """module -> the change of its weight, flattened to [out, in * kernel]."""
    tensors = {key: tensor.double() for key, tensor in load_file(path).items()}
    modules = {}
    for key, tensor in tensors.items():
        name, part = split(key)
        modules.setdefault(name, {})[part] = tensor
    return {name: weight * change(found) for name, found in modules.items()}


def split(key):
    for ending in ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight"):
        if key.endswith(f".{ending}"):
            return key.removesuffix(f".{ending}"), ending.split(".")[0]
    name, _, part = key.rpartition(".")
    return name, part


def change(t):
    if "lora_A" in t:
        t = t | {"lora_down": t["lora_A"], "lora_up": t["lora_B"]}
    if "lora_down" in t:
        rank = t["lora_down"].shape[0]
        if "lora_mid" in t:
            up, down = t["lora_up"].flatten(1), t["lora_down"].flatten(1)
            delta = torch.einsum("rs...,or,si->oi...", t["lora_mid"], up, down)
        else:
            delta = t["lora_up"].flatten(1) @ t["lora_down"].flatten(1)
    elif "hada_w1_a" in t:
        rank = t["hada_w1_b"].shape[0]
        delta = half(t, "hada_w1", "hada_t1") * half(t, "hada_w2", "hada_t2")
    elif "diff" in t:
        return t["diff"].flatten(1)
    else:
        rank = next((t[key].shape[0] for key in ("lokr_w2_b", "lokr_w1_b") if key in t), None)
        w1, w2 = (t[name] if name in t else half(t, name, name.replace("w", "t")) for name in ("lokr_w1", "lokr_w2"))
        delta = torch.kron(w1.reshape(*w1.shape, *[1] * (w2.dim() - 2)), w2.contiguous())
        if rank is None:
            return delta.flatten(1)
    return (delta * (float(t["alpha"]) / rank if "alpha" in t else 1.0)).flatten(1)


def half(t, name, core):
    a, b = t[f"{name}_a"], t[f"{name}_b"]
    if core in t:
        return torch.einsum("ij...,ip,jr->pr...", t[core], a, b)
    return (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])


def truncated(matrix, rank):
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]
