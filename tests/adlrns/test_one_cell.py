"""A model fixed to one cell: the same outputs, in layers that torch.compile, torch.export and ONNX take."""

import shutil

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hina_kohya.adlrns import DynamicLowRankLayer, adlrns_resnet, compress, one_cell


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(12, 16, 3, dilation=2, padding="same", bias=False)
        self.head = nn.Linear(16, 6)

    def forward(self, x, add=None):
        y = torch.relu(self.wide(torch.relu(self.conv(x))))
        y = self.head(y.mean((2, 3)))
        return y if add is None else y + add


def images(n, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 9, 9, generator=random) * torch.randn(n, 1, 1, 1, generator=random).exp()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return compress(Net(), [images(60, seed) for seed in range(3)], 60.0).eval()


def in_cell(model, cell, n=200):
    x = images(n, 7)
    return x[model.scorer.cell(x) == cell]


@pytest.mark.parametrize("cell", range(6))
def test_samples_of_the_cell_have_the_same_outputs_at_the_same_cost(small, cell):
    x, plain = in_cell(small, cell), one_cell(small, cell)
    assert len(x) > 3
    assert not any(isinstance(m, DynamicLowRankLayer) for m in plain.modules())
    with torch.no_grad():
        with FlopCounterMode(display=False) as ours:
            y = small(x)
        with FlopCounterMode(display=False) as its:
            again = plain(x)
    torch.testing.assert_close(again, y, rtol=1e-4, atol=1e-5)
    assert its.get_total_flops() <= ours.get_total_flops()


def test_it_shares_no_memory_and_has_the_present_budget(small):
    x, plain = in_cell(small, 5), one_cell(small, 5)
    before = plain(x)
    small.set_budget(45.0)
    cheaper = one_cell(small, 0)
    small.set_budget(60.0)
    assert plain(x).equal(before)
    assert sum(p.numel() for p in cheaper.parameters()) < sum(p.numel() for p in one_cell(small, 0).parameters())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert small(x).any()


def test_one_rank_for_all_layers(small):
    plain = one_cell(small, 2, rank=2)
    assert [plain.conv[0].out_channels, plain.wide[0].out_channels, plain.head[0].out_features] == [2, 2, 2]
    assert one_cell(small, 2, rank=99)(images(4)).shape == (4, 6)


@pytest.mark.parametrize(("kernel", "shape"), [((), (6,)), ((3,), (6, 9)), ((1, 2, 3), (6, 3, 4, 5))])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_alone_gives_its_output(kernel, shape, bias):
    torch.manual_seed(0)
    layer = DynamicLowRankLayer(6, 7, 5, r_min=1, cells=3, bias=bias, kernel_size=kernel).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(30, *shape) * torch.randn(30).exp().view(-1, *(1,) * len(shape))
    layer.calibrate(x)
    layer.ranks.copy_(torch.tensor([1, 2, 5, 5]))
    layer.load_state_dict(layer.state_dict())
    for cell in range(3):
        rows = x[layer.scorer.cell(x) == cell]
        torch.testing.assert_close(one_cell(layer, cell)(rows), layer(rows)[0], rtol=1e-4, atol=1e-4)
    bad = x[:1] * torch.inf
    assert one_cell(layer, 3)(bad).shape == layer.forward(x[:1])[0].shape


def test_rank_zero_is_the_mean_alone():
    layer = DynamicLowRankLayer(6, 7, 5, r_min=0, cells=1).eval()
    nn.init.normal_(layer.bias)
    layer.ranks.copy_(torch.tensor([0, 5]))
    layer.load_state_dict(layer.state_dict())
    x = torch.randn(4, 6)
    torch.testing.assert_close(one_cell(layer, 0)(x), layer(x)[0])


def test_layers_that_score_their_own_input_still_give_a_rank():
    torch.manual_seed(0)
    model = adlrns_resnet(4, image_size=8).eval()
    x = torch.randn(5, 3, 8, 8)
    plain = one_cell(model, 0)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)  # nothing is calibrated: all are in cell 0
    assert isinstance(plain.stages[0].first(torch.randn(1, 16, 8, 8)), tuple)


@pytest.mark.slow
def test_torch_export(small, tmp_path):
    x = in_cell(small, 3)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(one_cell(small, 3), (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "cell3.pt2")
    again = torch.export.load(tmp_path / "cell3.pt2").module()
    torch.testing.assert_close(again(x[:2]), small(x[:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_onnx(small, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    x, plain = in_cell(small, 3), one_cell(small, 3)
    path = tmp_path / "cell3.onnx"
    torch.onnx.export(plain, (x,), path, input_names=["x"], output_names=["y"], dynamo=True)
    from onnx.reference import ReferenceEvaluator

    (y,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), plain(x).detach(), rtol=1e-4, atol=1e-5)


def test_torch_compile_takes_it_as_one_graph(small):
    x, plain = in_cell(small, 3), one_cell(small, 3)
    compiled = torch.compile(plain, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), small(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_with_a_compiler():
    torch.manual_seed(0)
    layer, x = DynamicLowRankLayer(16, 12, 4, r_min=2).eval(), torch.randn(8, 16)
    layer.set_budget(40.0)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(one_cell(layer, 0), fullgraph=True)(x), layer(x)[0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda small: one_cell(small, 7), "cell = 7 must be from 0 to 6"),
        (lambda small: one_cell(small, -1), "cell = -1 must be from 0 to 6"),
        (lambda small: one_cell(small, 0, rank=0), "rank = 0 must be at least 1"),
        (lambda small: one_cell(nn.Linear(3, 3), 0), "has no DynamicLowRankLayer"),
    ],
)
def test_bad_input_is_refused(small, call, says):
    with pytest.raises(ValueError, match=says):
        call(small)
