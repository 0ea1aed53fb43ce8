"""Matrices with given singular values."""

import torch


def matrices(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spectrum(m, n, values, seed=0):
    """[m, n] with these singular values."""
    k = len(values)
    u, v = (torch.linalg.qr(matrices(size, k, seed=seed + i))[0] for i, size in enumerate((m, n)))
    return (u * torch.as_tensor(values, dtype=torch.float64)) @ v.mT
