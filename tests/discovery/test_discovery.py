"""Relationships found without names, on small networks with real gradients, and what must not be found."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hina_kohya.discovery import match
from hina_kohya.discovery.search import discover, observe
from tests.support.counting import Counter


class Pair(nn.Module):
    """W = B A, or a Kronecker product of the same factors' shapes, beside a frozen weight."""

    def __init__(self, inp, out, rank=4, kind="product"):
        super().__init__()
        self.frozen = torch.randn(out, inp) / inp**0.5
        self.kind = kind
        shapes = {"product": [(rank, inp), (out, rank)], "kronecker": [(4, 4), (out // 4, inp // 4)]}[kind]
        self.a, self.b = (nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes)

    def forward(self, x):
        return x @ (self.frozen + (self.b @ self.a if self.kind == "product" else torch.kron(self.a, self.b))).T


class Attention(nn.Module):
    def __init__(self, width=24, heads=3, bias=False):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.o = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def gradients(model, x, seed=0, batches=1):
    """Parameters in a random order with their gradients of some loss, summed over batches; and names by index."""
    torch.manual_seed(seed)
    model.zero_grad()
    for _ in range(batches):
        y = model(torch.randn_like(x))
        (y * torch.randn_like(y)).sum().backward()
    named = dict(model.named_parameters())
    names = [list(named)[k] for k in torch.randperm(len(named)).tolist()]
    return [named[n].detach() for n in names], [named[n].grad for n in names], names


def said(found, names):
    return {(names[r.param], names[r.partner], r.interaction_type) for r in found}


def pairs(count=12, rank=4, kind="product", seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(*(layer for _ in range(count) for layer in (Pair(16, 16, rank, kind), nn.Tanh()))).double()


def test_each_down_is_found_with_its_up():
    found = discover(*(got := gradients(pairs(), torch.empty(8, 16)))[:2])
    assert said(found, got[2]) == {(f"{2 * k}.b", f"{2 * k}.a", "product") for k in range(12)}
    assert all(r.compatibility > 1 - 1e-12 and (r.axis, r.partner_axis, r.heads) == (1, 0, 1) for r in found)


def gradients_double(model, *shape, **how):
    return gradients(model.double(), torch.empty(*shape, dtype=torch.float64), **how)


@pytest.fixture(autouse=True)
def _in_double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_a_sequence_of_linear_layers_is_one_chain():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(20, 20, bias=False) for _ in range(3)), nn.Linear(20, 5))
    params, grads, names = gradients_double(model, 8, 20)
    assert said(discover(params, grads), names) == {(f"{k + 1}.weight", f"{k}.weight", "product") for k in range(3)}


def test_a_bias_between_two_layers_is_found_as_part_of_the_first():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(4)))
    params, grads, names = gradients_double(model, 8, 20)
    found = discover(params, grads)
    assert said(found, names) == {(f"{k + 1}.weight", f"{k}.weight", "product") for k in range(3)}
    assert all(names[r.bias] == names[r.partner].replace("weight", "bias") for r in found)


def test_convolutions_share_their_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 10, 3, bias=False), nn.Conv2d(10, 6, 3, bias=False), nn.Conv2d(6, 4, 1))
    params, grads, names = gradients_double(model, 2, 3, 8, 8)
    assert said(discover(params, grads), names) == {
        ("1.weight", "0.weight", "product"), ("2.weight", "1.weight", "product")
    }  # fmt: skip


def test_attention_holds_per_head():
    torch.manual_seed(0)
    params, grads, names = gradients_double(Attention(), 4, 7, 24)
    found = discover(params, grads)
    by_kind = {r.interaction_type: {names[r.param], names[r.partner]} for r in found}
    assert by_kind == {"bilinear per head": {"q.weight", "k.weight"}, "product per head": {"o.weight", "v.weight"}}
    assert [r.heads for r in found] == [3, 3]


def test_attention_with_one_head_holds_whole():
    torch.manual_seed(0)
    params, grads, _ = gradients_double(Attention(heads=1), 4, 7, 24)
    assert {r.interaction_type for r in discover(params, grads)} == {"bilinear", "product"}


def test_attention_with_biases_holds_with_them():
    torch.manual_seed(0)
    params, grads, names = gradients_double(Attention(bias=True), 4, 7, 24)
    found = {frozenset((names[r.param], names[r.partner])): names[r.bias] for r in discover(params, grads)}
    assert found == {
        frozenset(("q.weight", "k.weight")): "q.bias", frozenset(("o.weight", "v.weight")): "v.bias"
    }  # fmt: skip


def test_relu_leaves_only_the_scaling_of_each_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20, bias=False), nn.ReLU(), nn.Linear(20, 6))
    params, grads, names = gradients_double(model, 32, 12)
    found = discover(params, grads)
    assert said(found, names) == {("2.weight", "0.weight", "channel")}
    assert found[0].heads == 20


@pytest.mark.parametrize("layer", [nn.GELU(), nn.Tanh(), nn.LayerNorm(20)], ids=lambda layer: type(layer).__name__)
def test_what_is_no_product_is_not_found(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20, bias=False), layer, nn.Linear(20, 6))
    params, grads, _ = gradients_double(model, 32, 12)
    assert discover(params, grads) == []


def test_kronecker_factors_are_found_by_the_scalar_form():
    params, grads, names = gradients(pairs(kind="kronecker"), torch.empty(8, 16))
    found = discover(params, grads)
    assert {frozenset((names[r.param], names[r.partner])) for r in found} == {
        frozenset((f"{2 * k}.a", f"{2 * k}.b")) for k in range(12)
    }
    assert {r.interaction_type for r in found} == {"scale"}


def one_order(model, seed):
    """The order of `gradients` depends on the seed: sorted by name."""
    params, grads, names = gradients(model, torch.empty(8, 16), seed)
    order = sorted(range(len(names)), key=names.__getitem__)
    return [params[k] for k in order], [grads[k] for k in order]


def noisy(tensors, relative, seed):
    generator = torch.Generator().manual_seed(seed)
    return [x * (1 + relative * torch.randn(x.shape, generator=generator)) for x in tensors]


def test_earlier_steps_make_the_scalar_form_certain_where_gradients_are_rough():
    model = pairs(count=20, kind="kronecker")
    steps = [(params, noisy(grads, 2e-3, k)) for k, (params, grads) in enumerate(one_order(model, k) for k in range(4))]
    alone, together = discover(*steps[-1]), discover(*steps[-1], [observe(*step) for step in steps[:-1]])
    assert len(alone) < 10
    assert {(r.param, r.partner) for r in together} == {(k, k + 1) for k in range(0, 40, 2)}


EVERY_PAIR = {(f"{2 * k}.b", f"{2 * k}.a", "product") for k in range(12)}


def test_accumulated_gradients():
    params, grads, names = gradients(pairs(), torch.empty(8, 16), batches=4)
    assert said(discover(params, grads), names) == EVERY_PAIR


@pytest.mark.parametrize("kind", ["product", "kronecker"])
@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_clipping_changes_nothing(kind, scale):
    """Not even where each step is clipped by another factor."""
    model = pairs(kind=kind)
    params, grads, names = gradients(model, torch.empty(8, 16))
    before = observe(params, [grad * 7.0 for grad in grads])
    expected = said(discover(params, grads, [observe(params, grads)]), names)
    assert len(expected) == 12
    assert said(discover(params, [grad * scale for grad in grads], [before]), names) == expected


@pytest.mark.parametrize("kind", ["product", "kronecker"])
def test_averaging_over_ranks_changes_nothing(kind):
    """Two ranks with half a batch each: neither's gradient is the mean's, and the mean keeps the identity."""
    model = pairs(kind=kind)
    (params, first, names), (_, second, others) = (gradients(model, torch.empty(4, 16), seed) for seed in (0, 1))
    second = [second[others.index(name)] for name in names]
    mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    found = said(discover(params, mean), names)
    assert {frozenset(pair[:2]) for pair in found} == {frozenset((f"{2 * k}.a", f"{2 * k}.b")) for k in range(12)}


def test_a_pair_with_a_frozen_half_is_left_alone():
    params, grads, names = gradients(pairs(), torch.empty(8, 16))
    grads[names.index("4.a")] = None
    grads[names.index("6.a")] = torch.zeros_like(grads[names.index("6.a")])
    looks = [observe(params, grads)] * 3
    assert said(discover(params, grads, looks), names) == {x for x in EVERY_PAIR if x[1] not in ("4.a", "6.a")}


def test_two_layers_with_equal_weights_are_told_apart_by_their_gradients():
    model = pairs()
    model[4].load_state_dict(model[2].state_dict())
    params, grads, names = gradients(model, torch.empty(8, 16))
    assert said(discover(params, grads), names) == EVERY_PAIR


def test_a_layer_that_is_used_twice_is_one_pair():
    model = pairs()
    model[4] = model[2]
    params, grads, names = gradients(model, torch.empty(8, 16))
    assert said(discover(params, grads), names) == {x for x in EVERY_PAIR if x[0] != "4.b"}


def test_a_sum_that_cancels_is_measured_by_its_terms():
    """At some steps a signature is small beside what it sums, and rounding then looks large beside it."""
    model = pairs()
    params, grads, names = gradients(model, torch.empty(8, 16))
    a, b = (names.index(name) for name in ("4.a", "4.b"))
    signature = params[b].T @ grads[b]
    keep = torch.zeros(4, 4)
    keep[0, 0] = 4e-2 * torch.linalg.matrix_norm(signature)
    for k, shift in ((b, params[b] @ torch.linalg.solve(params[b].T @ params[b], signature - keep)),
                     (a, (signature - keep) @ torch.linalg.solve(params[a] @ params[a].T, params[a]))):  # fmt: skip
        grads[k] = grads[k] - shift
    found = said(discover([p.bfloat16() for p in params], [g.bfloat16() for g in grads]), names)
    assert found == EVERY_PAIR


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_kronecker_modules_need_a_few_more_looks(count):
    """Among 24 LoRA modules, in rough arithmetic: nothing false ever, and all of them after four steps."""
    torch.manual_seed(count)
    lora, kron = (pairs(n, kind=kind, seed=s) for n, kind, s in ((24, "product", count), (count, "kronecker", 90)))
    model = nn.Sequential(*kron, *lora)
    kronecker = {frozenset((f"{2 * k}.a", f"{2 * k}.b")) for k in range(count)}
    params, _, names = gradients(model, torch.empty(8, 16), 0)
    steps = []
    for seed in range(4):
        _, grads, others = gradients(model, torch.empty(8, 16), seed)
        steps.append(noisy([grads[others.index(name)] for name in names], 2e-3, seed))
    for used in range(4):
        found = discover(params, steps[used], [observe(params, g) for g in steps[:used]])
        scales = {frozenset((names[r.param], names[r.partner])) for r in found if r.interaction_type == "scale"}
        assert scales <= kronecker
        assert sum(r.interaction_type == "product" for r in found) == 24
    assert scales == kronecker


def test_weights_before_a_normalisation_are_not_tied_because_both_sum_to_nothing():
    """<W, grad W> = 0 for each of them."""
    torch.manual_seed(0)
    block = lambda: [nn.Linear(12, 20, bias=False), nn.LayerNorm(20, eps=0.0), nn.GELU(), nn.Linear(20, 12), nn.Tanh()]
    model = nn.Sequential(*block(), *block())
    looks = []
    for seed in range(4):
        params, grads, _ = gradients(model, torch.empty(8, 12), 0)
        noise = noisy(grads, 1e-3, seed)
        assert discover(params, noise, looks) == []
        looks.append(observe(params, noise))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 3, 8])
@pytest.mark.parametrize("kind", ["product", "kronecker"])
def test_strangers_are_left_alone(kind, rank):
    """Gradients of one network at the parameters of another: every shape fits and no identity holds."""
    for seed in range(5):
        params, _, _ = gradients(pairs(30, rank, kind, seed), torch.empty(8, 16))
        looks = [gradients(pairs(30, rank, kind, 50 + seed), torch.empty(8, 16), s)[1] for s in range(3)]
        at = {p.shape: [q for q in params if q.shape == p.shape] for p in params}
        looks = [[{id(q): g for shape in at for q, g in zip(at[shape], (g for g in grads if g.shape == shape),
                  strict=True)}[id(p)] for p in params] for grads in looks]  # fmt: skip
        for used in (1, 2, 3):
            assert discover(params, looks[0], [observe(params, g) for g in looks[1:used]]) == []


def test_of_two_equal_candidates_neither_is_taken():
    params, grads, _ = gradients(pairs(4), torch.empty(8, 16))
    assert "product" not in {r.interaction_type for r in discover(params + params, grads + grads)}


def test_rank_one_is_a_product_too():
    params, grads, names = gradients(pairs(rank=1), torch.empty(8, 16))
    assert said(discover(params, grads), names) == {(f"{2 * k}.b", f"{2 * k}.a", "product") for k in range(12)}


def test_zero_factors_say_nothing():
    model = pairs()
    with torch.no_grad():
        for module in model:
            if isinstance(module, Pair):
                module.b.zero_()
    params, grads, _ = gradients(model, torch.empty(8, 16))
    assert discover(params, grads) == []
    assert discover(params, grads, [observe(params, grads)]) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_matrix_touches_no_other(value):
    params, grads, names = gradients(pairs(), torch.empty(8, 16))
    grads[names.index("4.a")][0, 0] = value
    grads[names.index("6.b")] = None
    expected = {(f"{2 * k}.b", f"{2 * k}.a", "product") for k in range(12) if k not in (2, 3)}
    assert said(discover(params, grads, [observe(params, grads)]), names) == expected


def test_odd_parameters_are_no_obstacle():
    shapes = [(), (1,), (5,), (0, 3), (1, 1), (2, 3, 4), (7, 1)]
    params = [torch.randn(shape) for shape in shapes]
    grads = [torch.randn(shape) for shape in shapes]
    assert discover(params, grads) == []
    assert discover([], []) == []
    assert discover(params, [None] * len(params)) == []
    assert observe(params, [None] * len(params)).isnan().all()


def test_the_threshold_bounds_the_residual():
    params, grads, _ = gradients(pairs(), torch.empty(8, 16))
    grads = noisy(grads, 0.01, 0)
    residual = {t: [1 - r.compatibility for r in discover(params, grads, (), t)] for t in (0.3, 0.05, 0.01)}
    assert len(residual[0.3]) == 12
    assert 0 < len(residual[0.05]) < 12
    assert residual[0.01] == []
    assert all(max(values) <= t * match.SIGHT for t, values in residual.items() if values)


def test_bf16_parameters_and_gradients():
    params, grads, names = gradients(pairs(), torch.empty(8, 16))
    found = discover([p.bfloat16() for p in params], [g.bfloat16() for g in grads])
    assert said(found, names) == {(f"{2 * k}.b", f"{2 * k}.a", "product") for k in range(12)}


def test_observing_never_waits_and_discovering_seldom():
    for count in (12, 48):
        params, grads, _ = gradients(pairs(count), torch.empty(8, 16))
        with Counter() as counter:
            observe(params, grads)
        assert counter.synchronisations == []
        assert counter.operations <= 40


def test_candidates_are_those_of_a_full_search():
    prints = np.random.default_rng(0).normal(size=(300, 5)) * 0.4
    owners = np.arange(300) // 2
    near = (np.abs(prints[:, None] - prints[None]) <= match.WINDOW).all(-1) & (owners[:, None] != owners)
    expected = {(i, j) for i, j in np.argwhere(near) if i < j}
    assert len(expected) > 50
    assert {tuple(sorted(pair)) for pair in match.candidates(prints, owners).tolist()} == expected


def test_candidates_grow_with_the_matrices_and_not_with_their_square():
    """Even where all fingerprints are equal."""
    assert len(match.candidates(np.zeros((4000, 8)), np.arange(4000))) <= 4000 * match.KEEP
