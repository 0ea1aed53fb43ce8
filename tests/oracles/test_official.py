"""Every oracle against the authors' or packaged implementation, float64, hundreds of random steps with a changing lr.

``drift`` is the largest difference seen at any step, relative to the largest entry of the parameter.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from tests.support.official import SHAPES, TOL, drift, gradients, lr_at

from .adamw import AdamW
from .adopt import ADOPT
from .cautious import Cautious
from .cautious_weight_decay import CautiousWeightDecay
from .grams import Grams
from .lora_rite import LoRARite
from .loraplus import LoRAPlus
from .orthograd import OrthoGrad
from .stochastic_rounding import stochastic_round

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def timm_module(monkeypatch):
    """A module of timm.optim without timm/__init__, which needs torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed")
    loaded = [name for name in sys.modules if name.partition(".")[0] == "timm"]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    root = spec.submodule_search_locations[0]
    for name, path in (("timm", root), ("timm.optim", f"{root}/optim")):
        package = types.ModuleType(name)
        package.__path__ = [path]
        monkeypatch.setitem(sys.modules, name, package)
    yield lambda name: importlib.import_module(f"timm.optim.{name}")
    for name in [name for name in sys.modules if name.startswith("timm.")]:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def pytorch_optimizer():
    """From 4.0: 3.9 has no LoRARite, a Grams with the wrong weight in its average, a float32 OrthoGrad."""
    module = pytest.importorskip("pytorch_optimizer")
    version = importlib.metadata.version("pytorch_optimizer")
    if int(version.partition(".")[0]) < 4:
        pytest.skip(f"pytorch_optimizer {version} is older than 4.0")
    return module


@each_shape
@pytest.mark.parametrize("foreach", [False, True])
def test_adamw(shape, foreach):
    def official(params):
        return torch.optim.AdamW(params, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.1, foreach=foreach)

    assert drift(AdamW((0.8, 0.99), 1e-3, 0.1), official, shape) <= TOL


@each_shape
def test_a_flattened_convolution_is_the_same(shape):
    def official(params):
        return torch.optim.AdamW(params, weight_decay=0.1)

    assert drift(AdamW(weight_decay=0.1), official, shape, flat=True) <= TOL


@each_shape
@pytest.mark.parametrize("sparse", [False, True])
def test_adopt(shape, sparse):
    adopt = pytest.importorskip("adopt")

    def official(params):
        return adopt.ADOPT(params, betas=(0.8, 0.99), eps=1e-2, weight_decay=0.1, decouple=True, foreach=False)

    assert drift(ADOPT((0.8, 0.99), 1e-2, 0.1), official, shape, sparse) <= TOL


@each_shape
def test_adopt_against_timm(shape, timm_module):
    def official(params):
        options = {"betas": (0.9, 0.9999), "clip_exp": 0.25, "weight_decay": 0.1, "decoupled": True, "foreach": False}
        return timm_module("adopt").Adopt(params, **options)

    assert drift(ADOPT(weight_decay=0.1), official, shape) <= TOL


@each_shape
@pytest.mark.parametrize("sparse", [False, True])
def test_cautious_adamw(shape, sparse, timm_module):
    def official(params):
        return timm_module("adamw").AdamWLegacy(params, weight_decay=0.1, caution=True, foreach=False)

    assert drift(Cautious(weight_decay=0.1, every_entry=True), official, shape, sparse) <= TOL


@each_shape
def test_cautious_adopt(shape, timm_module):
    def official(params):
        options = {"clip_exp": 0.25, "weight_decay": 0.1, "decoupled": True, "caution": True, "foreach": False}
        return timm_module("adopt").Adopt(params, **options)

    assert drift(Cautious(ADOPT(), weight_decay=0.1), official, shape) <= TOL


def test_cautious_floor(timm_module):
    """One agreeing entry of thousands: the mean is below the clamp."""
    p, g = np.ones(5000), np.full(5000, -1e-9)
    first = np.where(np.arange(5000) == 0, -1.0, 1.0)
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    official = timm_module("adamw").AdamWLegacy([parameter], lr=0.1, weight_decay=0.0, caution=True, foreach=False)
    oracle = Cautious()
    for gradient in (first, g):
        parameter.grad = torch.from_numpy(gradient.copy())
        official.step()
        p = oracle.step(p, gradient, 0.1)
    np.testing.assert_allclose(p, parameter.detach().numpy(), rtol=TOL)


@each_shape
@pytest.mark.parametrize("sparse", [False, True])
def test_cautious_weight_decay(shape, sparse):
    adv_optm = pytest.importorskip("adv_optm")

    def official(params):
        return adv_optm.AdamW_adv(params, weight_decay=0.5, cautious_wd=True, stochastic_rounding=False)

    assert drift(CautiousWeightDecay(weight_decay=0.5), official, shape, sparse) <= TOL


@each_shape
@pytest.mark.parametrize("sparse", [False, True])
def test_grams_of_the_authors_has_eps_inside(shape, sparse):
    grams = pytest.importorskip("grams")

    def official(params):
        return grams.Grams(params, eps=1e-2, weight_decay=0.1)

    assert drift(Grams(eps=1e-2, weight_decay=0.1, eps_inside=True), official, shape, sparse) <= TOL
    assert drift(Grams(eps=1e-2, weight_decay=0.1), official, shape, sparse) > 1e-4


@each_shape
@pytest.mark.parametrize("sparse", [False, True])
def test_grams_ours_has_eps_after_the_correction(shape, sparse, pytorch_optimizer):
    def official(params):
        return pytorch_optimizer.Grams(params, eps=1e-2, weight_decay=0.1)

    assert drift(Grams(eps=1e-2, weight_decay=0.1), official, shape, sparse) <= TOL


@each_shape
def test_orthograd(shape, pytorch_optimizer):
    def official(params):
        return pytorch_optimizer.OrthoGrad(torch.optim.SGD(params, lr=1.0))

    assert drift(OrthoGrad(), official, shape) <= TOL


@each_shape
def test_orthograd_before_adamw_in_float32(shape):
    """adv_optm casts to float32, hence the tolerance."""
    adv_optm = pytest.importorskip("adv_optm")

    def official(params):
        return adv_optm.AdamW_adv(params, orthogonal_gradient="flattened", stochastic_rounding=False)

    assert drift(OrthoGrad(AdamW()), official, shape) <= 1e-5
    assert drift(AdamW(), official, shape) > 1e-2


def test_lora_plus():
    """Two param groups; without decay, as ours takes the plain lr."""
    A, B = (
        torch.nn.Parameter(torch.linspace(-1, 1, 36).double().reshape(4, 9)),
        torch.nn.Parameter(torch.zeros(6, 4).double()),
    )
    official = torch.optim.AdamW([{"params": [A]}, {"params": [B]}], weight_decay=0)
    oracle = LoRAPlus(16.0)
    a, b = A.detach().numpy().copy(), B.detach().numpy().copy()
    for t, (gA, gB) in enumerate(zip(gradients((4, 9)), gradients((6, 4), seed=1), strict=True)):
        A.grad, B.grad = torch.from_numpy(gA), torch.from_numpy(gB)
        official.param_groups[0]["lr"], official.param_groups[1]["lr"] = lr_at(t), 16 * lr_at(t)
        official.step()
        a, b = oracle.step(a, b, gA, gB, lr_at(t))
        np.testing.assert_allclose(a, A.detach().numpy(), rtol=0, atol=TOL * np.abs(a).max())
        np.testing.assert_allclose(b, B.detach().numpy(), rtol=0, atol=TOL * np.abs(b).max())


RITE = [
    # (m, n, r), B starts at zero, options of both
    ((7, 5, 3), False, {}),
    ((12, 20, 4), True, {}),
    ((6, 9, 1), False, {"eps": 1e-3}),
    ((7, 5, 3), False, {"eps": 1e-2, "weight_decay": 0.1}),
    ((7, 5, 3), False, {"apply_escape": True}),
    ((3, 9, 5), False, {"eps": 1e-3}),  # rank above the rows of B: directions without gradient, so no tiny eps
]


def rite_drift(official_class, sizes, zero, options, steps=30):
    """The loss is that of a W to learn, so that A and B are used as in training."""
    m, n, r = sizes
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((r, n)), np.zeros((m, r)) if zero else rng.standard_normal((m, r))
    target = rng.standard_normal((m, n))
    options = {"eps": 1e-12, **options}
    ours = {k: v for k, v in options.items() if k != "apply_escape"}
    oracle = LoRARite((0.9, 0.99), escape=options.get("apply_escape", False), **ours)
    pA, pB = (torch.nn.Parameter(torch.from_numpy(x.copy())) for x in (A, B))
    limits = {"clip_unmagnified_grad": 0.0, "update_skipping": 0.0}
    official = official_class([pA, pB], betas=(0.9, 0.99), **limits, **options)
    worst = 0.0
    for t in range(steps):
        G = (B @ A - target) * (1 + 0.3 * rng.standard_normal((m, n)))
        gA, gB = B.T @ G, G @ A.T
        pA.grad, pB.grad = torch.from_numpy(gA.copy()), torch.from_numpy(gB.copy())
        for group in official.param_groups:
            group["lr"] = lr_at(t)
        official.step()
        A, B = oracle.step(A, B, gA, gB, lr_at(t))
        for x, q in ((A, pA), (B, pB)):
            worst = max(worst, np.abs(x - q.detach().numpy()).max() / np.abs(x).max())
    return worst


@pytest.mark.parametrize(("sizes", "zero", "options"), RITE)
def test_lora_rite(sizes, zero, options, pytorch_optimizer):
    assert rite_drift(pytorch_optimizer.LoRARite, sizes, zero, options) <= TOL


def test_stochastic_rounding():
    update = pytest.importorskip("adv_optm.util.param_update")
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(100_000) * 10 ** rng.uniform(-38, 38, 100_000)).astype(np.float32)
    noise = rng.integers(0, 2**16, x.shape, dtype=np.int32)
    target = torch.empty(x.shape, dtype=torch.bfloat16)
    update._copy_stochastic_core_(target, torch.from_numpy(x), torch.from_numpy(noise))
    np.testing.assert_array_equal(stochastic_round(x, noise), target.float().numpy())
