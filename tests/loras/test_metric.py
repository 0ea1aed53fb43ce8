"""The metric: gathered by hooks equals the definition, and resizing in it is the best there is in the dense metric."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from hina_kohya.cli import main
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.gathering import Gathering
from hina_kohya.loras.metric import RIDGE
from hina_kohya.loras.resizing import Request, resize
from hina_kohya.loras.summing import Source
from tests.support import lora_files as files
from tests.support.dense import dense, truncated

NAMES = ("lora_unet_conv_in", "lora_unet_proj_in", "lora_unet_proj_out")


class Net(nn.Module):
    """A convolution and two linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv_in = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.proj_in, self.proj_out = nn.Linear(6, 9), nn.Linear(9, 4)
        self.requires_grad_(False)

    def forward(self, x):
        return self.proj_out(torch.tanh(self.proj_in(self.conv_in(x).flatten(2).movedim(1, 2))))


def adapted(path):
    """The model with the adapter on, as sd-scripts puts it there: the layer's forward is replaced."""
    net, tensors, used = Net(), load_file(path), []
    for name in NAMES:
        layer = getattr(net, name.removeprefix("lora_unet_"))
        down, up = (tensors[f"{name}.lora_{side}.weight"].clone().requires_grad_() for side in ("down", "up"))
        scale = float(tensors[f"{name}.alpha"]) / len(down)
        _replace(layer, down, up, scale)
        used += [down, up]
    return net, used


def _replace(layer, down, up, scale):
    forward = layer.forward

    def replaced(x):
        if isinstance(layer, nn.Conv2d):
            hidden = nn.functional.conv2d(x, down, None, layer.stride, layer.padding)
            return forward(x) + nn.functional.conv2d(hidden, up) * scale
        return forward(x) + (x @ down.T) @ up.T * scale

    layer.forward = replaced


@pytest.fixture
def gathered(tmp_path):
    """(path of the adapter, path of its metric, A and G of each layer by the definition)."""
    path = tmp_path / "a.safetensors"
    shapes = {name: tuple(getattr(Net(), name.removeprefix("lora_unet_")).weight.shape) for name in NAMES}
    files.plain(path, shapes, rank=4, decay=0.9)
    net, _ = adapted(path)
    data = batches()
    with Gathering(net, path) as metric:
        for batch, target in data:
            loss_of(net, batch, target).backward()
    metric.save(tmp_path / "a.metric.safetensors")
    return path, tmp_path / "a.metric.safetensors", defined(path, data)


def batches():
    generator = torch.Generator().manual_seed(8)
    scale = torch.tensor([3.0, 1.0, 0.1]).view(3, 1, 1)
    data = [torch.randn(size, 3, 8, 8, generator=generator) * scale for size in (2, 5)]
    return [(each, torch.randn(len(each), 16, 4, generator=generator)) for each in data]


def loss_of(net, batch, target):
    return (net(batch) - target).square().sum((1, 2)).mean()


def defined(path, data):
    """module -> (A, G) in float64: of each sample's own gradient of the merged weight, by autograd."""
    net, changes, factors = Net().double(), dense(path), load_file(path)
    weights = {name: getattr(net, name.removeprefix("lora_unet_")).weight for name in NAMES}
    for name, weight in weights.items():
        weight.data += changes[name].reshape(weight.shape)
        weight.requires_grad_()
    cores = {name: [] for name in NAMES}
    for batch, target in data:
        for x, y in zip(batch.double(), target.double(), strict=True):
            grads = torch.autograd.grad(loss_of(net, x[None], y[None]), list(weights.values()))
            for name, grad in zip(weights, grads, strict=True):
                down, up = factor(factors, name)
                cores[name].append(up.T @ grad.flatten(1) @ down.T)
    found = {}
    for name, each in cores.items():
        s = torch.stack(each)
        found[name] = (s.mT @ s).sum(0) / s.square().sum(), (s @ s.mT).mean(0)
    return found


def factor(factors, name):
    """down and up in float64, with the scale in up."""
    down, up = (factors[f"{name}.lora_{side}.weight"].double().flatten(1) for side in ("down", "up"))
    return down, up * (float(factors[f"{name}.alpha"]) / len(down))


def test_hooks_gather_the_definition(gathered):
    _, metric, moments = gathered
    tensors = load_file(metric)
    assert len(tensors) == 2 * len(NAMES)
    for name, (a, g) in moments.items():
        torch.testing.assert_close(tensors[f"{name}.down"].double(), a, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(tensors[f"{name}.up"].double(), g, rtol=1e-4, atol=1e-4 * float(g.max()))


@pytest.mark.parametrize("bypass", [False, True])
def test_of_lycoris_network_it_is_the_same(gathered, bypass):
    """Its modules are put on after the hooks, as in a trainer, and given by name."""
    from lycoris.modules.locon import LoConModule

    path, metric, _ = gathered
    net, factors = Net(), load_file(path)
    layers = {name: getattr(net, name.removeprefix("lora_unet_")) for name in NAMES}
    with Gathering.on(layers, path) as again:
        for name, layer in layers.items():
            module = LoConModule(name, layer, 1.0, 4, 2.0, bypass_mode=bypass)
            module.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in factors.items()
                                    if key.startswith(f"{name}.")}, strict=False)  # fmt: skip
            module.apply_to()
        for batch, target in batches():
            loss_of(net, batch, target).backward()
    for key, tensor in again.tensors().items():
        torch.testing.assert_close(tensor, load_file(metric)[key], rtol=1e-3, atol=1e-5 * float(tensor.max()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_nothing_twice(gathered, reentrant):
    path, metric, _ = gathered
    net, _ = adapted(path)

    def forward(x):  # the convolution is outside
        hidden = net.conv_in(x).flatten(2).movedim(1, 2)
        return checkpoint(lambda h: net.proj_out(torch.tanh(net.proj_in(h))), hidden, use_reentrant=reentrant)

    net.forward = forward
    with Gathering(net, path) as again:
        for batch, target in batches():
            loss_of(net, batch, target).backward()
    for key, tensor in again.tensors().items():
        torch.testing.assert_close(tensor, load_file(metric)[key])


def test_a_scaled_loss_is_undone_and_an_overflow_left_out(gathered):
    """As with fp16: the first scale is too large, and its step does not count."""
    path, metric, _ = gathered
    net, _ = adapted(path)
    with Gathering(net, path) as again:
        for number, (batch, target) in enumerate([batches()[0], *batches()]):
            scale = 2.0**10 if number else float("inf")
            again.loss_scale = torch.tensor(scale)
            (loss_of(net, batch, target) * scale).backward()
    assert again.samples == 7
    for key, tensor in again.tensors().items():
        torch.testing.assert_close(tensor, load_file(metric)[key], rtol=1e-4, atol=1e-5 * float(tensor.max()))


def test_equal_weight_for_layers_that_see_a_batch_laid_out_flat(tmp_path):
    """Positions one after the other in place of [batch, positions, channels]: other rows, the size of the same sum."""
    path = tmp_path / "a.safetensors"
    files.plain(path, {f"lora_unet_proj_{end}": (6, 6) for end in ("in", "mid", "out")}, rank=2, seed=3)
    found = {}
    for flat in (False, True):
        torch.manual_seed(0)
        net = nn.Module()
        net.proj_in, net.proj_mid, net.proj_out = (nn.Linear(6, 6, bias=False) for _ in range(3))
        x = torch.randn(4, 8, 6)
        with Gathering(net, path) as metric:
            hidden = net.proj_mid(net.proj_in(x))
            out = net.proj_out(hidden.flatten(0, 1)) if flat else net.proj_out(hidden)
            (out * torch.randn(out.numel()).view_as(out)).sum().div(4).backward()
        found[flat] = {key: float(tensor.trace()) for key, tensor in metric.tensors().items() if key.endswith(".up")}
        assert metric.samples == 4
    for key, size in found[True].items():
        assert size == pytest.approx(found[False][key], rel=1.0 if "proj_out" in key else 1e-4)
        assert size > 0


def test_it_loses_less_on_unseen_data_than_the_weights_alone(tmp_path):
    """A quadratic model whose inputs and outputs matter unequally: gathered on one half, judged on the other."""
    torch.manual_seed(5)
    m, n = 24, 20
    up, down = torch.randn(m, 8), torch.randn(8, n)
    save_file({"lora_unet_x.lora_up.weight": up, "lora_unet_x.lora_down.weight": down,
               "lora_unet_x.alpha": torch.tensor(8.0)}, tmp_path / "a.safetensors")  # fmt: skip
    spread = torch.logspace(-1.5, 1.5, n)[torch.randperm(n)], torch.logspace(-1.5, 1.5, m)[torch.randperm(m)]
    mixed = torch.linalg.qr(torch.randn(n, n)).Q
    x, noise = (torch.randn(400, n) * spread[0]) @ mixed, torch.randn(400, m) / spread[1]
    net = nn.Module()
    net.x = nn.Linear(n, m, bias=False)
    net.x.weight.data = up @ down
    target = x @ net.x.weight.detach().T + noise
    loss = lambda x, y: ((net.x(x) - y) * spread[1]).square().sum(1).mean()
    with Gathering(net, tmp_path / "a.safetensors") as metric:
        loss(x[:200], target[:200]).backward()
    metric.save(tmp_path / "a.metric.safetensors")
    source, lost = (Source(tmp_path / "a.safetensors"),), {}
    for by in (None, tmp_path / "a.metric.safetensors"):
        resize(Request(source, tmp_path / "o.safetensors", rank=2, metric=by))
        net.x.weight.data = dense(tmp_path / "o.safetensors")["lora_unet_x"].float()
        lost[by is None] = loss(x[200:], target[200:]).item()
    assert lost[False] < 0.5 * lost[True]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_result_is_the_best_in_the_dense_metric(gathered, rank):
    path, metric, moments = gathered
    whole, factors = dense(path), load_file(path)
    out = path.with_name("out.safetensors")
    result = resize(Request((Source(path),), out, rank=rank, metric=metric))
    assert "by 7 samples of data" in result.line
    written = load_file(out)
    ranks = {name: len(written[f"{name}.lora_down.weight"]) for name in NAMES if f"{name}.alpha" in written}
    kept = dense(out)
    for name, k in ranks.items():
        down, up = factor(factors, name)
        a, g = (plus_ridge(moment, plain) for moment, plain in zip(moments[name], (down.T, up), strict=True))
        left, right = torch.linalg.cholesky(g).T, torch.linalg.cholesky(a)  # of the core, [4, 4]
        best = torch.linalg.solve(left, truncated(left @ right, k)) @ torch.linalg.inv(right)
        assert (kept[name] - up @ best @ down).norm() <= 1e-3 * whole[name].norm()


def plus_ridge(moment, plain):
    return moment + RIDGE * moment.trace() / plain.square().sum() * plain.T @ plain


def test_what_the_data_needs_is_kept_where_weights_would_not(tmp_path):
    """A direction that the data never excites is large in the weights: by weights it stays, by data it goes."""
    down, up = torch.eye(3, 5), torch.eye(6, 3)
    down[0] *= 10
    tensors = {"lora_unet_proj_in.lora_down.weight": down, "lora_unet_proj_in.lora_up.weight": up,
               "lora_unet_proj_in.alpha": torch.tensor(3.0)}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")
    net = nn.Module()
    net.proj_in = nn.Linear(5, 6, bias=False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 5, generator=generator) * torch.tensor([1e-3, 1.0, 1.0, 1.0, 1.0])
    with Gathering(net, tmp_path / "a.safetensors") as metric:
        (net.proj_in(x) - torch.randn(50, 6, generator=generator)).square().sum(1).mean().backward()
    metric.save(tmp_path / "m.safetensors")
    lost = {}
    for by in (None, tmp_path / "m.safetensors"):
        resize(Request((Source(tmp_path / "a.safetensors"),), tmp_path / "o.safetensors", rank=1, metric=by))
        delta = (
            dense(tmp_path / "a.safetensors")["lora_unet_proj_in"]
            - dense(tmp_path / "o.safetensors")["lora_unet_proj_in"]
        )
        lost[by is None] = float((x.double() @ delta.T).square().sum())
    assert lost[False] < 0.6 * lost[True]


def test_a_metric_of_another_file_or_of_a_sum_is_refused(gathered, tmp_path, capsys):
    path, metric, _ = gathered
    other = tmp_path / "b.safetensors"
    shapes = {name: tuple(getattr(Net(), name.removeprefix("lora_unet_")).weight.shape) for name in NAMES}
    files.plain(other, shapes, rank=4, seed=9)
    out = ["--rank", "1", "-o", str(tmp_path / "o.safetensors")]
    for words, message in [
        ([str(other), "--calibrate", str(metric)], "was gathered for another file"),
        ([str(path), "--calibrate", str(other)], "is no metric file of version 2"),
        ([str(path), str(other), "--calibrate", str(metric)], "is about one adapter at weight 1"),
        ([f"{path}:0.5", "--calibrate", str(metric)], "is about one adapter at weight 1"),
        ([str(path), "--calibrate", str(tmp_path / "none.safetensors")], "there is no file"),
    ]:
        assert main(["resize", *words, *out]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    with pytest.raises(AdapterError, match="would be lost"):
        resize(Request((Source(path),), metric, rank=1, metric=metric))


def test_a_gathering_without_gradients_says_so(gathered):
    path, _, _ = gathered
    net, _ = adapted(path)
    with Gathering(net, path) as metric, torch.no_grad():
        net(torch.randn(2, 3, 8, 8))
    with pytest.raises(AdapterError, match="no gradient reached 3 of 3 modules"):
        metric.tensors()
    assert not any(layer._forward_hooks for layer in net.modules())


def test_a_model_without_the_adapter_s_layers(gathered):
    with pytest.raises(AdapterError, match="the model has no layer for lora_unet_conv_in"):
        Gathering(nn.Linear(2, 2), gathered[0])
