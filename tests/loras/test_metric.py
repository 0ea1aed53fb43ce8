"""The metric: gathered by hooks equals the definition, and resizing in it is the best there is in the dense metric."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

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
    generator = torch.Generator().manual_seed(8)
    batches = [
        torch.randn(size, 3, 8, 8, generator=generator) * torch.tensor([3.0, 1.0, 0.1]).view(3, 1, 1) for size in (2, 5)
    ]
    targets = [torch.randn(len(batch), 16, 4, generator=generator) for batch in batches]
    seen = {name: ([], []) for name in NAMES}
    watchers = []
    for name in NAMES:
        layer = getattr(net, name.removeprefix("lora_unet_"))
        watchers.append(
            layer.register_forward_hook(lambda layer, args, out, name=name: watch(seen[name], layer, args[0], out))
        )
    with Gathering(net, path) as metric:
        for batch, target in zip(batches, targets, strict=True):
            (net(batch) - target).square().sum((1, 2)).mean().backward()
    metric.save(tmp_path / "a.metric.safetensors")
    samples = sum(len(batch) for batch in batches)
    dense_moments = {}
    for name, (xs, gs) in seen.items():
        x, g = torch.cat(xs).double(), torch.cat(gs).double()
        dense_moments[name] = (x.T @ x / len(x), g.T @ g / samples)
    return path, tmp_path / "a.metric.safetensors", dense_moments


def watch(seen, layer, x, out):
    """Inputs of each position as the weight's columns see them, and the gradient of each sample's own loss."""
    batch = len(x)
    if isinstance(layer, nn.Conv2d):
        x = nn.functional.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).movedim(1, 2)
    seen[0].append(x.detach().reshape(-1, x.shape[-1]))
    out.register_hook(
        lambda g: seen[1].append(
            batch * (g.movedim(1, -1) if g.dim() == 4 else g).reshape(-1, out.shape[1] if g.dim() == 4 else g.shape[-1])
        )
    )


def test_hooks_gather_the_definition(gathered):
    path, metric, moments = gathered
    tensors, factors = load_file(metric), load_file(path)
    assert len(tensors) == 2 * len(NAMES)
    for name, (a, g) in moments.items():
        down, up = (factors[f"{name}.lora_{side}.weight"].double().flatten(1) for side in ("down", "up"))
        up = up * (float(factors[f"{name}.alpha"]) / len(down))
        torch.testing.assert_close(tensors[f"{name}.inputs"].double(), down @ a @ down.T, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(tensors[f"{name}.gradients"].double(), up.T @ g @ up, rtol=1e-4, atol=1e-6)


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
        down, up = (factors[f"{name}.lora_{side}.weight"].double().flatten(1) for side in ("down", "up"))
        up = up * (float(factors[f"{name}.alpha"]) / len(down))
        a, g = (plus_ridge(moment, plain) for moment, plain in zip(moments[name], (down.T, up), strict=True))
        left, right = torch.linalg.cholesky(g).T, torch.linalg.cholesky(a)
        best = torch.linalg.solve(left, truncated(left @ whole[name] @ right, k)) @ torch.linalg.inv(right)
        assert (left @ (kept[name] - best) @ right).norm() <= 1e-4 * (left @ whole[name] @ right).norm()


def plus_ridge(moment, plain):
    """The ridge is the identity in the dense metric."""
    return moment + RIDGE * (plain.T @ moment @ plain).trace() / plain.square().sum() * torch.eye(len(moment))


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
        ([str(other), "--metric", str(metric)], "was gathered for another file"),
        ([str(path), "--metric", str(other)], "is no metric file"),
        ([str(path), str(other), "--metric", str(metric)], "belongs to one adapter at weight 1"),
        ([f"{path}:0.5", "--metric", str(metric)], "belongs to one adapter at weight 1"),
        ([str(path), "--metric", str(tmp_path / "none.safetensors")], "there is no file"),
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
