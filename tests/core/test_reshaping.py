"""Parameters with fewer rows or columns: the same objects, and an optimizer that goes on as if there were no others."""

import logging

import pytest
import torch
from torch import nn

import hina_kohya
from hina_kohya import AutomagicCameAMP, HinaAdamW
from hina_kohya.core.registry import techniques
from hina_kohya.core.reshaping import Change, Kind, reshape
from tests.support.checkpoints import copy_of, through_file
from tests.support.classes import CLASSES
from tests.support.stepping import make_params, train
from tests.support.table import maker

KEEP = torch.tensor([3, 0])
SHAPES = {0: (4, 6), 1: (5, 4)}
CONVS = {0: (4, 3, 2, 2), 1: (5, 4, 1, 1)}


def parameters(shapes, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes.values()]


def step(optimizer, params, number, kept=False):
    """A gradient that is the same, number by number, for whole parameters and for what is kept of them."""
    random = torch.Generator().manual_seed(number)
    for dim, param in enumerate(params):
        whole = torch.randn((CONVS if param.dim() == 4 else SHAPES)[dim], generator=random)
        param.grad = whole.index_select(dim, KEEP) if kept else whole
    optimizer.step()


def keep(params):
    return {param: Change.keep(dim, KEEP, 4) for dim, param in enumerate(params)}


def make(name, params):
    if name == "Adafactor":
        transformers = pytest.importorskip("transformers")
        return transformers.optimization.Adafactor(params, lr=1e-2, relative_step=False, scale_parameter=False)
    if name.startswith("Hina"):
        return HinaAdamW(params, lr=1e-2, state=name.partition(" ")[2], use_cautious=False)  # a mean over each matrix
    return getattr(torch.optim, name)(params, lr=1e-2, **({"momentum": 0.9} if name == "SGD" else {}))


@pytest.mark.parametrize("shapes", [SHAPES, CONVS], ids=["linear", "conv"])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop", "Adagrad", "Hina fp32", "Hina bf16"])
def test_what_is_kept_goes_on_as_if_the_rest_had_never_been(name, shapes):
    """These step every entry by itself, so a small parameter from the start is the same by the bit."""
    if "bf16" in name and shapes is CONVS:
        pytest.skip("rounding is seeded by the place in a matrix")
    params, small = parameters(shapes), parameters(shapes)
    for dim, param in enumerate(small):
        param.data = param.data.index_select(dim, KEEP)
    optimizer, reference = make(name, params), make(name, small)
    objects = list(params)
    for number in range(3):
        step(optimizer, params, number)
        step(reference, small, number, kept=True)
    reshape([optimizer], keep(params))
    assert all(param.grad is None for param in params)
    tolerance = {"rtol": 0.02, "atol": 1e-3} if "bf16" in name else {"rtol": 0, "atol": 0}
    for number in range(3, 6):
        step(optimizer, params, number, kept=True)
        step(reference, small, number, kept=True)
        for mine, theirs in zip(params, small, strict=True):
            torch.testing.assert_close(mine, theirs, **tolerance)
    assert all(mine is before for mine, before in zip(params, objects, strict=True))
    assert [param for group in optimizer.param_groups for param in group["params"]] == objects


def test_eight_bits_are_decoded_sliced_and_encoded_again():
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(64, 96))
    optimizer = HinaAdamW([param], lr=1e-2, state="8bit")
    for _ in range(3):
        param.grad = torch.randn(param.shape)
        optimizer.step()
    exact = HinaAdamW([nn.Parameter(param.detach().clone())], lr=1e-2, state="fp32")
    exact.load_state_dict(optimizer.state_dict())
    exact.plan()
    before = {key: value.clone() for key, value in next(iter(exact.state.values())).items()}
    index = torch.arange(0, 64, 2)
    reshape([optimizer], {param: Change.keep(0, index, 64)})
    exact = HinaAdamW([nn.Parameter(param.detach().clone())], lr=1e-2, state="fp32")
    optimizer.plan()
    assert optimizer.state[param]["adam.exp_avg"].dtype == torch.int8
    exact.load_state_dict(optimizer.state_dict())
    exact.plan()
    after = next(iter(exact.state.values()))
    assert int(after["step"]) == 3
    for key in ("adam.exp_avg", "adam.exp_avg_sq"):
        wanted = before[key][index]
        torch.testing.assert_close(after[key], wanted, rtol=0.15, atol=0.02 * float(wanted.abs().max()))


@pytest.mark.parametrize("dim", [0, 1])
def test_averages_go_along_with_another_basis(dim):
    """up @ down is up T @ T^-1 down: averages of gradients are those that the new factors would have had."""
    random = torch.Generator().manual_seed(0)
    up, down, transform = (torch.randn(size, generator=random).double() for size in ((5, 4), (4, 6), (4, 4)))
    inverse = torch.linalg.inv(transform)
    old, new = ([up, down], [up @ transform, inverse @ down])
    gradients = []
    for pair in (old, new):
        leaves = [each.clone().requires_grad_() for each in pair]
        (leaves[0] @ leaves[1]).sin().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    change = Change(1, transform.T, inverse) if dim == 0 else Change(0, inverse, transform.T)
    torch.testing.assert_close(change.of(old[dim], Kind.VALUE), new[dim])
    torch.testing.assert_close(change.of(gradients[0][dim], Kind.GRADIENT), gradients[1][dim])
    assert (change.of(gradients[0][dim].square(), Kind.SQUARE) >= 0).all()


def test_means_over_rows_and_columns_follow():
    params = parameters(SHAPES)
    optimizer = make("Adafactor", params)
    for number in range(2):
        step(optimizer, params, number)
    wide, tall = (optimizer.state[param] for param in params)
    before = wide["exp_avg_sq_row"].clone(), wide["exp_avg_sq_col"].clone()
    columns = tall["exp_avg_sq_col"].clone()
    reshape([optimizer], keep(params))
    assert wide["exp_avg_sq_row"].equal(before[0][KEEP])
    assert wide["exp_avg_sq_col"].equal(before[1])
    assert tall["exp_avg_sq_col"].equal(columns[KEEP])
    step(optimizer, params, 2, kept=True)
    assert all(param.isfinite().all() for param in params)


def test_blocks_of_bitsandbytes_follow():
    functional = pytest.importorskip("bitsandbytes.functional")
    param = nn.Parameter(torch.randn(64, 96))
    optimizer = torch.optim.SGD([param], 0.0)
    tables = functional.create_dynamic_map(True), functional.create_dynamic_map(False)
    state = optimizer.state[param]
    state["step"] = 3
    values = torch.randn(64, 96), torch.rand(64, 96)
    for place, (value, table) in enumerate(zip(values, tables, strict=True), 1):
        codes, scales = functional.quantize_blockwise(A=value, code=table, blocksize=256)
        state |= {f"state{place}": codes, f"absmax{place}": scales.absmax, f"qmap{place}": table}
    index = torch.arange(0, 64, 2)
    reshape([optimizer], {param: Change.keep(0, index, 64)})
    for place, value in enumerate(values, 1):
        codes, scale = state[f"state{place}"], state[f"absmax{place}"]
        assert (codes.dtype, codes.shape, scale.shape) == (torch.uint8, (32, 96), (12,))
        found = functional.dequantize_blockwise(A=codes, absmax=scale, code=state[f"qmap{place}"], blocksize=256)
        torch.testing.assert_close(found, value[index], rtol=0.1, atol=0.05)
    assert state["step"] == 3


def test_what_is_not_known_starts_anew_and_says_so(caplog):
    params = parameters(SHAPES)
    optimizer = make("AdamW", params)
    step(optimizer, params, 0)
    optimizer.state[params[0]]["memory"] = torch.ones(SHAPES[0])
    with caplog.at_level(logging.WARNING, "hina_kohya"):
        reshape([optimizer], keep(params))
    assert "AdamW: of the parameters that changed their shape, memory cannot follow and starts anew" in caplog.text
    assert params[0] not in optimizer.state
    assert optimizer.state[params[1]]["exp_avg"].shape == (5, 2)
    step(optimizer, params, 1, kept=True)


def test_averages_of_ours_that_cannot_follow_start_anew_with_their_step_count(caplog):
    params = [nn.Parameter(torch.randn(4, 48)), nn.Parameter(torch.randn(48, 4))]
    optimizer = AutomagicCameAMP(params, lr=1e-3)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape)
        optimizer.step()
    with caplog.at_level(logging.WARNING, "hina_kohya"):
        reshape([optimizer], {params[0]: Change.keep(0, KEEP, 4)})
    assert "AutomagicCameAMP: of the parameters that changed their shape, " in caplog.text
    assert "came" in caplog.text
    optimizer.plan()
    assert [int(optimizer.state[param]["step"]) for param in params] == [0, 3]
    assert not optimizer.state[params[0]]["came.exp_avg"].any()
    for param in params:
        param.grad = torch.randn(param.shape)
    optimizer.step()
    assert params[0].shape == (2, 48)


def test_whoever_holds_a_gradient_accumulator_does_not_stop_it():
    """As DDP does."""
    param = nn.Parameter(torch.randn(4, 6))
    held = param.expand_as(param).grad_fn.next_functions[0][0]
    reshape([], {param: Change.keep(0, KEEP, 4)})
    (param @ torch.randn(6, 3)).sum().backward()
    assert param.grad.shape == (2, 6)
    assert held is not None


MAKERS = {
    **{name: maker(name, state="8bit") for name in techniques()},
    **{cls: lambda params, cls=cls: getattr(hina_kohya, cls)(params.items()) for cls in CLASSES},
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_technique_and_class_goes_on_and_is_resumed(name):
    """A pair of factors that loses half its rank, beside one that keeps it."""
    names = {f"lora_unet_a.lora_{side}.weight": dim for dim, side in enumerate(("down", "up"))}
    shapes = dict(zip(names, ((4, 80), (96, 4)), strict=True))
    shapes |= {key.replace("unet_a", "unet_b"): shape for key, shape in shapes.items()}
    params = make_params(shapes=shapes)
    optimizer = MAKERS[name](params)
    train(optimizer, params, 3)
    reshape([optimizer], {params[key]: Change.keep(dim, KEEP, 4) for key, dim in names.items()})
    train(optimizer, params, 1)
    assert [tuple(param.shape) for param in params.values()] == [(2, 80), (96, 2), (4, 80), (96, 4)]
    assert all(param.isfinite().all() for param in params.values())
    again = copy_of(params)
    resumed = MAKERS[name](again)
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    train(optimizer, params, 2, start=4)
    train(resumed, again, 2, start=4)
    assert all(torch.equal(params[key], again[key]) for key in params)
