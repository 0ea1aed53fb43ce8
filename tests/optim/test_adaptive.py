"""AdaptiveHinaAdamW: what it finds without names acts as names do, and survives a checkpoint."""

import copy
import json
import logging
import pickle

import pytest
import torch
from torch import nn

from hina_kohya.discovery import relationships as module
from hina_kohya.discovery.relationships import Relationships, joined
from hina_kohya.discovery.search import Relationship
from hina_kohya.optim.adaptive_hina_adamw import AdaptiveHinaAdamW
from hina_kohya.optim.hina_adamw import HinaAdamW
from hina_kohya.parameters.role_table import Kind
from hina_kohya.parameters.roles import resolve
from tests.support.adamw import run
from tests.support.chains import chains_of
from tests.support.checkpoints import through_file
from tests.support.counting import Counter, small_matrices
from tests.support.stepping import make_params, set_grads, train

OFF = {"use_dynamic_adaptation": False, "use_lora_muon": False, "use_cautious": False, "state": "fp32"}
STATES = ["fp32", "bf16", "8bit"]
states = pytest.mark.parametrize("state", STATES)


class Adapter(nn.Module):
    """x (W + B A)^T or x (W + w1 (x) w2)^T with W frozen; one factor starts at zero."""

    def __init__(self, kind, width=16, rank=4):
        super().__init__()
        self.frozen = torch.randn(width, width) / width**0.5
        if kind == "lora":
            self.lora_down, self.lora_up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
            nn.init.zeros_(self.lora_up.weight)
        else:
            self.lokr_w1 = nn.Parameter(torch.randn(4, 4))
            self.lokr_w2 = nn.Parameter(torch.zeros(width // 4, width // 4 if width // 4 != 4 else 4))
        self.kind = kind

    def forward(self, x):
        change = (
            self.lora_up.weight @ self.lora_down.weight
            if self.kind == "lora"
            else torch.kron(self.lokr_w1, self.lokr_w2)
        )
        return x @ (self.frozen + change).T


def network(kinds=("lora",) * 6 + ("lokr",) * 6, width=24, seed=0):
    torch.manual_seed(seed)
    layers = [layer for kind in kinds for layer in (Adapter(kind, width), nn.Tanh())]
    return nn.Sequential(*layers)


def backward(model, step, width=24):
    x = torch.randn(32, width, generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    (model(x) - x.roll(1, dims=1)).square().mean().backward()


def named(model, **arguments):
    """As sd-scripts names them: one module a layer."""
    pairs = [(f"lora_unet_m{name}", p) for name, p in model.named_parameters()]
    return AdaptiveHinaAdamW(pairs, **{"lr": 1e-3, **arguments})


def hidden(model, **arguments):
    return AdaptiveHinaAdamW(list(model.parameters()), **{"lr": 1e-3, **arguments})


def steps(optimizer, model, first, last):
    for step in range(first, last):
        backward(model, step)
        optimizer.step()


def relations(optimizer):
    return [(member.partner, member.cofactors, member.cofactor_rank) for member in optimizer.members]


@pytest.mark.slow
@pytest.mark.parametrize("foreach", [False, True])
def test_all_off_is_torch_by_the_bit(foreach):
    mine = run(lambda groups: AdaptiveHinaAdamW(groups, lr=1e-3, decay_roles="all", **OFF))
    torchs = run(lambda groups: torch.optim.AdamW(groups, lr=1e-3, foreach=foreach))
    assert all(torch.equal(a, b) for a, b in zip(mine, torchs, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relationship_discovery_interval": 0}, r"relationship_discovery_interval = 0 is outside \[1, inf\)"),
        ({"relationship_discovery_interval": 2.5}, "relationship_discovery_interval = 2.5 is no whole number"),
        ({"compatibility_threshold": 1.0}, r"compatibility_threshold = 1.0 is outside \(0, 1\)"),
        ({"adaptation_strength": 5}, r"adaptation_strength = 5 is outside \[-4, 4\]"),
        ({"importance_decay": 1.0}, r"importance_decay = 1.0 is outside \[0, 1\)"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveHinaAdamW(make_params().items(), **arguments)


@pytest.mark.slow
def test_at_its_defaults_it_steps_as_hina_adamw():
    """What it finds and measures is reported, and moves nothing."""
    results = []
    for cls in (HinaAdamW, AdaptiveHinaAdamW):
        params = make_params()
        train(cls(params.items(), lr=1e-3), params, 6)
        results.append(params)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"use_dynamic_adaptation": False}, {"adaptation_strength": 0.2}, {"importance_decay": 0.2}, {"use_lr_mask": True}],
    ids=str,
)
def test_every_argument_changes_the_update(options):
    results = []
    for chosen in ({}, options):
        params, chosen = make_params(), {"adaptation_strength": 0.5, **chosen}
        train(AdaptiveHinaAdamW(params.items(), lr=1e-3, **chosen), params, 6)
        results.append(params["head.weight"].detach())
    assert not torch.equal(*results)


def test_looks():
    looks = lambda interval, end=20: [step for step in range(1, end) if Relationships(interval, 0.3).looks_at(step)]
    assert looks(100, 301) == [2, 4, 100, 200, 300]
    assert looks(7) == [2, 4, 7, 14]
    assert looks(1, 6) == [2, 3, 4, 5]


# What it finds


@pytest.mark.slow
def test_hidden_names_are_found_and_have_the_effect_of_names():
    one, two = network(), network()
    with_names, without = (
        named(one, use_kronecker_rms=True, use_alora=True),
        hidden(two, use_kronecker_rms=True, use_alora=True),
    )
    assert {member.partner for member in without.members} == {None}
    for optimizer, model in ((with_names, one), (without, two)):
        steps(optimizer, model, 0, 4)
    assert relations(without) == relations(with_names)
    techniques = lambda optimizer: [{technique.name for technique in chain} for chain in chains_of(optimizer)]
    assert techniques(without) == techniques(with_names)
    assert sum("lora_plus" in chain for chain in techniques(without)) == 6
    assert sum("kronecker_rms" in chain for chain in techniques(without)) == 12
    stats = without.get_optimization_info()
    assert stats["lora_stats"]["lora_pairs"] == 6
    assert stats["lokr_stats"]["lokr_pairs"] == 6
    with torch.no_grad():
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            q.copy_(p)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        without.state[q] = copy.deepcopy(with_names.state[p])
    without._plan = None  # the same state on both: from here on, names make no difference
    for optimizer, model in ((with_names, one), (without, two)):
        steps(optimizer, model, 4, 8)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["lora", "loha", "lokr"])
def test_hidden_names_on_the_embedded_model(algo):
    pytest.importorskip("diffusers")
    from benchmarks.discovery import Run

    found = Run(algo)
    names = [member.name for member in found.members]
    shadows = [nn.Parameter(param.detach().clone()) for param in found.params]
    with_names = AdaptiveHinaAdamW(list(zip(names, found.params, strict=True)), lr=1e-3, use_alora=True)
    without = AdaptiveHinaAdamW(shadows, lr=1e-3, use_alora=True)
    for step in range(4):
        found.model.loss(found.data.batch(step, 8)).backward()
        for param, shadow in zip(found.params, shadows, strict=True):
            shadow.data.copy_(param.data)
            shadow.grad = None if param.grad is None else param.grad.clone()
        for optimizer in (with_names, without):
            optimizer.step()
            optimizer.zero_grad()
    assert [(p, set(c), r) for p, c, r in relations(without)] == [(p, set(c), r) for p, c, r in relations(with_names)]
    rules = lambda optimizer: [(m.role.kind, m.role.side, m.role.zero_init) for m in optimizer.members]
    assert rules(without) == rules(with_names)
    assert chains_of(without) == chains_of(with_names)
    summary = with_names.get_relationship_summary()
    assert summary["confirmed"] == summary["named_pairs"] > 50
    assert summary["disagreements"] == []
    assert summary["relationships"][0]["param"] in names


def test_a_found_pair_starts_its_new_moment_anew():
    model = network(("lora",) * 8)
    optimizer = hidden(model, use_lora_rite=True)
    steps(optimizer, model, 0, 1)
    assert all("adam.exp_avg" in entry for entry in optimizer.state.values())
    steps(optimizer, model, 1, 3)
    assert {(int(entry["step"]), "lora_rite.exp_avg" in entry) for entry in optimizer.state.values()} == {(2, True)}


def test_nothing_is_rebuilt_while_nothing_new_is_found():
    model = network()
    optimizer = hidden(model, relationship_discovery_interval=1)
    steps(optimizer, model, 0, 4)
    plan = optimizer.plan()
    steps(optimizer, model, 4, 9)
    assert optimizer.plan() is plan


@pytest.mark.slow
def test_between_looks_nothing_waits():
    params = small_matrices(10)
    optimizer = AdaptiveHinaAdamW(params.values(), lr=1e-3, relationship_discovery_interval=8)
    for step in range(1, 9):
        set_grads(params, step)
        with Counter() as counter:
            optimizer.step()
        if step not in (2, 4, 8) and step > 1:
            assert counter.synchronisations == []


def test_whole_weights_are_not_taken_for_factors():
    """Of a sequence of linear layers every two neighbours are a product."""
    for layers in (
        [nn.Linear(20, 20, bias=False) for _ in range(4)],
        [nn.Linear(20, 20, bias=False), nn.Linear(20, 12)],
        [nn.Linear(20, 4, bias=False), nn.Linear(4, 20, bias=False)],
    ):
        torch.manual_seed(0)
        model = nn.Sequential(*layers).double()
        optimizers = [
            AdaptiveHinaAdamW(params, lr=1e-3, use_lora_rite=True, use_spd=True, use_allora_rows=True)
            for params in (list(model.parameters()), list(copy.deepcopy(model).parameters()))
        ]
        for step in range(4):
            x = torch.randn(16, 20, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            model.zero_grad()
            (model(x).square().mean() + model(x).sum()).backward()
            optimizers[0].step()
        optimizer = optimizers[0]
        assert optimizer.get_relationship_summary()["by_type"] == {"product": len(layers) - 1}
        assert {member.role.kind for member in optimizer.members} == {Kind.REGULAR}
        assert not any("lora_plus" in {t.name for t in chain} for chain in chains_of(optimizer))
        bottleneck = layers[0].out_features == 4
        assert any(member.partner is not None for member in optimizer.members) == bottleneck
        assert any(each.ties for each in optimizer.parameters())


def member_lists(*shapes):
    return resolve([None] * len(shapes), list(shapes))


def test_products_of_two_products_by_shape():
    """LoHa's two pairs have equal shapes, LoKr's have not; a Tucker core makes a chain, in which no two are a pair."""
    product = lambda b, a: Relationship(b, a, "product", 1.0, 1, 0)
    scale = [Relationship(i, j, "scale", 1.0) for i in (0, 1) for j in (2, 3)]
    pairs = [product(0, 1), product(2, 3)]
    lokr = joined(member_lists((6, 2), (2, 4), (8, 2), (2, 40)), [*pairs, *scale], [False, False, True, False])
    assert [m.cofactors for m in lokr] == [(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)]
    assert {m.cofactor_rank for m in lokr} == {4}
    assert [m.partner for m in lokr] == [1, 0, 3, 2]
    assert [m.role.zero_init for m in lokr] == [False, False, True, False]
    loha = joined(member_lists((6, 2), (2, 9), (6, 2), (2, 9)), [*pairs, *scale], [False, False, True, False])
    assert {m.cofactors for m in loha} == {()}
    assert {m.role.kind for m in loha} == {Kind.FACTOR}
    plain = joined(member_lists((6, 2), (2, 4), (8, 2), (2, 40)), [*pairs, *scale], [False] * 4)
    assert {m.cofactors for m in plain} == {()}
    wide, narrow = (joined(member_lists((20, r), (r, 20)), [product(0, 1)], [False] * 2) for r in (11, 10))
    assert ({m.partner for m in wide}, {m.partner for m in narrow}) == ({None}, {0, 1})
    tucker = [product(0, 1), product(1, 2), *(Relationship(i, 3, "scale", 1.0) for i in (0, 1, 2))]
    core = joined(member_lists((8, 3, 1, 1), (3, 3, 3, 3), (3, 5, 1, 1), (4, 4)), tucker, [True, False, False, False])
    assert {m.partner for m in core} == {None}
    assert {m.cofactor_rank for m in core} == {9}


def test_names_win_and_a_lie_is_told_once(caplog):
    model = network(("lora",) * 8)
    names = [f"lora_unet_m{name}" for name, _ in model.named_parameters()]
    names[1], names[3] = names[3], names[1]  # two lora_up, each under the other's module
    optimizer = AdaptiveHinaAdamW(list(zip(names, model.parameters(), strict=True)), relationship_discovery_interval=2)
    with caplog.at_level(logging.WARNING):
        steps(optimizer, model, 0, 9)
    assert len([record for record in caplog.records if "names and gradients disagree" in record.message]) == 1
    summary = optimizer.get_relationship_summary()
    assert (summary["named_pairs"], summary["confirmed"]) == (8, 6)
    assert (
        sorted(each["kind"] for each in summary["disagreements"]) == ["found, not named"] * 2 + ["named, not found"] * 2
    )
    assert optimizer.members[0].partner == 3


def test_a_new_partner_displaces_the_old_one(monkeypatch):
    params = list(make_params(shapes={f"m{i}": (4, 4) for i in range(3)}).values())
    for param in params:
        param.grad = torch.ones_like(param)
    answers = iter([[Relationship(0, partner, "product", 1.0, 1, 0)] for partner in (1, 2)])
    monkeypatch.setattr(module, "discover", lambda *_: next(answers))
    kept = Relationships(1, 0.3)
    for _ in range(3):
        kept.before_step(params, lambda: member_lists((4, 4), (4, 4), (4, 4)))
    assert [(r.param, r.partner) for r in kept.relationships()] == [(0, 2)]


def test_what_is_missing_from_three_looks_is_forgotten(monkeypatch):
    params = list(make_params(shapes={f"m{i}": (4, 4) for i in range(3)}).values())
    for param in params:
        param.grad = torch.ones_like(param)
    answers = iter([[Relationship(0, 1, "product", 1.0, 1, 0)], [], [], [], [], []])
    monkeypatch.setattr(module, "discover", lambda *_: next(answers))
    kept = Relationships(1, 0.3)
    members = lambda: member_lists((4, 4), (4, 4), (4, 4))
    changes = []
    for step in range(7):
        params[1].grad = None if step == 2 else torch.full_like(params[1], step != 3)  # then it says nothing
        changes.append((kept.before_step(params, members), len(kept.relationships())))
    assert changes == [(False, 0), (True, 1), (False, 1), (False, 1), (False, 1), (False, 1), (True, 0)]


# Checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("resume_at", [1, 2, 3, 5])
@states
def test_resume_is_exact_at_any_step(state, resume_at):
    arguments = {"state": state, "use_lora_rite": True, "use_kronecker_rms": True, "use_lr_mask": True, "use_spd": True}
    model = network()
    optimizer = hidden(model, **arguments)
    steps(optimizer, model, 0, resume_at)
    saved, resumed = through_file(optimizer.state_dict()), copy.deepcopy(model)
    second = hidden(resumed, **arguments)
    second.load_state_dict(saved)
    assert relations(second) == relations(optimizer)
    for each, net in ((optimizer, model), (second, resumed)):
        steps(each, net, resume_at, 8)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
    assert relations(second) == relations(optimizer)
    assert any(partner is not None for partner, *_ in relations(second))
    assert second.get_relationship_summary() == optimizer.get_relationship_summary()
    one, two = (each.state_dict()["relationships"] for each in (optimizer, second))
    assert torch.equal(one.pop("zero"), two.pop("zero"))
    assert all(torch.equal(a, b) for a, b in zip(one.pop("looks"), two.pop("looks"), strict=True))
    assert one == two


def test_relationships_follow_names_into_another_order():
    model = network()
    optimizer = named(model)
    steps(optimizer, model, 0, 3)
    saved, other = through_file(optimizer.state_dict()), copy.deepcopy(model)
    backwards = [(f"lora_unet_m{name}", p) for name, p in other.named_parameters()][::-1]
    second = AdaptiveHinaAdamW(backwards, lr=1e-3)
    second.load_state_dict(saved)
    ties = lambda each: {
        tuple(sorted((r["param"], r["partner"]))) for r in each.get_relationship_summary()["relationships"]
    }
    assert ties(second) == ties(optimizer)
    last = len(backwards) - 1
    assert second._relations.zero.tolist() == optimizer._relations.zero.tolist()[::-1]
    assert torch.equal(second._relations.looks[-1][last], optimizer._relations.looks[-1][0])
    steps(second, other, 3, 6)
    assert second.get_relationship_summary()["disagreements"] == []


def test_a_checkpoint_without_relationships_starts_without():
    model = network()
    optimizer = hidden(model, use_dynamic_adaptation=False)
    steps(optimizer, model, 0, 3)
    assert "relationships" not in optimizer.state_dict()
    second = hidden(model)
    second.load_state_dict(through_file(optimizer.state_dict()))
    steps(second, model, 3, 8)


def test_copies_and_pickles_go_on():
    model = network()
    optimizer = hidden(model)
    steps(optimizer, model, 0, 3)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for param, source in zip(other.params(), model.parameters(), strict=True):
            param.grad = torch.ones_like(source)
        other.step()
        assert relations(other) == relations(optimizer)


@pytest.mark.slow
def test_a_group_may_be_added():
    one, two = network(), network(("lora",) * 3, seed=1)
    optimizer = hidden(one)
    steps(optimizer, one, 0, 3)
    optimizer.add_param_group({"params": list(two.parameters())})
    both = nn.Sequential(one, two)
    steps(optimizer, both, 3, 8)
    optimizer._relations.interval = 1
    steps(optimizer, both, 8, 10)
    assert all(partner is not None for partner, *_ in relations(optimizer)[-6:])


@pytest.mark.slow
def test_equal_gradients_find_the_same_whatever_was_drawn_before():
    """As two ranks do."""
    models = [network(), network()]
    optimizers = [hidden(model) for model in models]
    for rank, (optimizer, model) in enumerate(zip(optimizers, models, strict=True)):
        torch.manual_seed(rank)
        steps(optimizer, model, 0, 6)
    assert all(torch.equal(p, q) for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True))
    one, two = (optimizer.state_dict()["relationships"] for optimizer in optimizers)
    assert one["found"] == two["found"] != []


# Reports


def reports(optimizer):
    return (
        optimizer.get_relationship_summary(),
        optimizer.get_importance_analysis(),
        optimizer.get_lr_mask_analysis(),
        optimizer.get_optimization_info(),
    )


@pytest.mark.parametrize(
    "arguments",
    [{}, {"adaptation_strength": 0.5}, {"use_dynamic_adaptation": False}, {"use_lr_mask": True}],
    ids=str,
)
def test_reports_have_the_same_keys_at_any_time(arguments):
    model = network()
    optimizer = hidden(model, **arguments)
    before = reports(optimizer)
    steps(optimizer, model, 0, 5)
    after = reports(optimizer)
    assert json.loads(json.dumps(after)) == list(after)
    assert [report.keys() for report in before] == [report.keys() for report in after]
    found, importance, mask, _ = after
    assert before[1]["importance_statistics"] == {"mean": 1.0, "max": 1.0, "min": 1.0, "std": 0.0}
    assert importance["total_parameters"] == 24
    if "use_dynamic_adaptation" not in arguments:
        assert found["by_type"] == {"product": 6, "scale": 6}
        assert found["total_relationships"] == len(found["relationships"]) == 12
        entry = found["relationships"][0]
        assert {entry["param"], entry["partner"]} == {"group 0, parameter 0", "group 0, parameter 1"}
        assert (entry["shape"], entry["partner_shape"]) == ([24, 4], [4, 24])
        assert entry["compatibility"] > 0.99
        top = importance["top"][0]
        assert top["importance"] == importance["importance_statistics"]["max"] > 1
        assert (top["multiplier"] > 1) == ("adaptation_strength" in arguments)
    assert mask["enabled"] == ("use_lr_mask" in arguments)
    if mask["enabled"]:
        assert mask["elements"] == sum(p.numel() for p in model.parameters())
        assert 1 < mask["statistics"]["max"] <= 10
        assert mask["by_group"]["group_0"]["statistics"] == mask["statistics"]


@pytest.mark.slow
def test_the_shares_of_the_mask_at_its_ends():
    param = nn.Parameter(torch.zeros(2, 4))
    optimizer = AdaptiveHinaAdamW([param], lr=1e-3, use_lr_mask=True, use_cautious=False)
    for step in range(120):
        param.grad = torch.ones(2, 4)
        param.grad[1] = (-1.0) ** step
        optimizer.step()
    mask = optimizer.get_lr_mask_analysis()
    assert (mask["share_at_low"], mask["share_at_high"]) == (0.5, 0.5)
    assert mask["statistics"]["min"] == pytest.approx(0.1, rel=0.05)


def test_reports_of_nothing_do_not_raise():
    assert len(reports(AdaptiveHinaAdamW([nn.Parameter(torch.zeros(0))]))) == 4
