"""Parameters and gradients that break optimizers."""

import copy
import pickle

import pytest
import torch

from hina_kohya import HinaAdamW
from tests.support.chains import ALL, CHAINS, states
from tests.support.stepping import make_params, set_grads, train

chains = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())


def finite(params):
    return all(param.isfinite().all() for param in params.values())


@chains
@states
def test_odd_shapes_and_zero_gradients(chain, state):
    params = make_params()
    params |= {"empty": torch.nn.Parameter(torch.zeros(0, 3)), "zero": torch.nn.Parameter(torch.zeros(5, 5))}
    transposed = torch.nn.Parameter(torch.randn(6, 9).t())
    assert not transposed.is_contiguous()
    params["transposed"] = transposed
    optimizer = HinaAdamW(params.items(), lr=1e-3, state=state, **chain)
    for step in range(4):
        set_grads(params, step)
        for param in params.values():
            if step in (0, 2):
                param.grad.zero_()
        optimizer.step()
    assert finite(params)
    assert params["empty"].shape == (0, 3)


@chains
@states
def test_nan_in_one_matrix_does_not_reach_another(chain, state):
    """The poisoned matrix shares its bucket with healthy ones, whose values must not change by a bit."""
    healthy, poisoned = make_params(), make_params()
    victims = {name for name in healthy if name.startswith("lora_unet_a.")}
    for params, poison in ((healthy, False), (poisoned, True)):
        optimizer = HinaAdamW(params.items(), lr=1e-3, state=state, **chain)
        for step in range(5):
            set_grads(params, step)
            if poison and step == 2:
                for name in victims:
                    params[name].grad.flatten()[0] = torch.nan
            optimizer.step()
    for name in healthy.keys() - victims:
        assert torch.equal(healthy[name], poisoned[name]), name


@chains
def test_no_gradient_keeps_parameter_state_and_step(chain):
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3, state="fp32", **chain)
    train(optimizer, params, 3)
    idle = ["lora_unet_b.lora_down.weight", "lora_unet_k.lokr_w1"]
    before = {name: (params[name].clone(), copy.deepcopy(optimizer.state[params[name]])) for name in idle}
    for step in range(3, 6):
        set_grads(params, step)
        for name in idle:
            params[name].grad = None
        optimizer.step()
    optimizer.state_dict()
    for name, (value, state) in before.items():
        assert torch.equal(params[name], value)
        now = optimizer.state[params[name]]
        assert now["step"] == 3
        assert all(torch.equal(now[key], state[key]) for key in state if key != "step")
    assert optimizer.state[params["lora_unet_a.lora_down.weight"]]["step"] == 6


def test_gradients_that_never_come():
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3)
    before = {name: param.clone() for name, param in params.items()}
    optimizer.step()
    assert all(torch.equal(before[name], params[name]) for name in params)
    assert optimizer.get_optimization_info()["training_stats"]["global_step"] == 0


def test_gradients_and_inputs_are_not_written_to():
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3, **ALL)
    set_grads(params, 0)
    grads = {name: param.grad.clone() for name, param in params.items()}
    optimizer.step()
    assert all(torch.equal(grads[name], params[name].grad) for name in params)


def test_sparse_gradient_is_one_clear_error():
    embedding, dense = torch.nn.Embedding(10, 4, sparse=True), torch.nn.Parameter(torch.ones(3))
    optimizer = HinaAdamW([("dense", dense), *embedding.named_parameters()])
    (embedding(torch.tensor([1, 2])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match=r"parameter weight has a torch.sparse_coo gradient; use dense ones"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(3))  # refused before anything moved


def test_complex_parameter_is_refused():
    with pytest.raises(ValueError, match="only real ones are trained"):
        HinaAdamW([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


def test_closure_runs_with_gradients_enabled():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = HinaAdamW([param], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert (param < 1).all()


def test_grad_scaler_skips_a_step_with_overflow():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = HinaAdamW([param], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(param.sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(param, torch.ones(3))
    optimizer.zero_grad()
    scaler.scale(param.sum()).backward()
    scaler.step(optimizer)
    assert (param < 1).all()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_continue_alike(clone):
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3)
    train(optimizer, params, 3)
    twin = clone(optimizer)
    twins = dict(zip(params, twin.param_groups[0]["params"], strict=True))
    train(optimizer, params, 3, start=3)
    train(twin, twins, 3, start=3)
    assert all(torch.equal(params[name], twins[name]) for name in params)


def test_cast_and_new_group_in_the_middle_keep_state():
    """`--full_bf16` casts after construction; a cast between steps must not lose the moments either."""
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3, state="fp32")
    train(optimizer, params, 3)
    name = "lora_unet_a.lora_down.weight"
    before = optimizer.state[params[name]]["lora_muon.exp_avg"].clone()
    for param in params.values():
        param.data = param.data.bfloat16()
        param.grad = None
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    optimizer.step()
    assert torch.equal(optimizer.state[params[name]]["lora_muon.exp_avg"], before)
    assert optimizer.state[params[name]]["step"] == 3


def test_a_bf16_anchor_where_a_neighbour_has_no_gradient():
    """SPD anchors a whole weight in the weight's own dtype; a bucket whose rows are not all stepped writes by index."""
    params = [torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16)) for _ in range(3)]
    names = [f"lora_unet_{i}.weight" for i in range(3)]
    optimizer = HinaAdamW(list(zip(names, params, strict=True)), lr=1e-2, use_spd=True)
    for step in range(3):
        for i, param in enumerate(params):
            param.grad = None if (i + step) % 3 == 1 else torch.ones_like(param)
        optimizer.step()
    assert all(torch.isfinite(param).all() and (param != 1).any() for param in params)
