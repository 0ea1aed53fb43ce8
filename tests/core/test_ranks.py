"""Two processes with the same gradients stay equal by the bit, random rounding included."""

import os

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed

from hina_kohya import HinaAdamW
from tests.support.stepping import make_params, set_grads


def work(rank, folder, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)  # whatever a rank drew before must not matter
    torch.rand(rank * 100)
    params = make_params(torch.bfloat16)
    optimizer = HinaAdamW(params.items(), lr=1e-2, state="bf16", use_tam=True)
    for step in range(5):
        set_grads(params, step, seed=1 + rank)
        for param in params.values():
            mean = param.grad.float()
            distributed.all_reduce(mean)
            param.grad = (mean / 2).to(param.dtype)
        optimizer.step()
    for param in params.values():
        both = [torch.zeros_like(param.data) for _ in range(2)]
        distributed.all_gather(both, param.data)
        results[rank] += int(torch.equal(*both))
    distributed.destroy_process_group()
    # Gloo's threads may drop tensors while Python ends, and abort (pytorch/pytorch#179291); so Python does not end.
    os._exit(0)


@pytest.mark.slow
def test_two_ranks_stay_bit_equal(tmp_path):
    results = torch.zeros(2, dtype=torch.int64).share_memory_()
    mp.spawn(work, args=(tmp_path, results), nprocs=2)
    assert results.tolist() == [len(make_params())] * 2
