"""The table of arguments: what follows from a row is there, and goes with it."""

import copy
import dataclasses as dc
import inspect
import logging
import pickle

import pytest
import toml
import torch

import hina_kohya
from hina_kohya.cli import main
from hina_kohya.core import registry
from hina_kohya.core.hyper import Interval, hyper
from hina_kohya.core.technique import Stage, Technique
from hina_kohya.optim import arguments, presets
from hina_kohya.optim.kinds import Numbers, Option, Own, Switch
from scripts import make_arguments
from tests.support.stepping import make_params

CLASSES = make_arguments.classes()
EACH = [(name, row) for name, cls in CLASSES.items() for row in arguments.of(cls).values()]
classes = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES.keys())
each = pytest.mark.parametrize(("cls", "row"), EACH, ids=[f"{cls}.{row.name}" for cls, row in EACH])


def make(cls, **given):
    return CLASSES[cls](make_params().items(), **given)


# The signature


@classes
def test_the_signature_is_what_the_constructor_does(cls):
    parameters = inspect.signature(cls).parameters
    assert list(parameters)[:5] == ["params", "lr", "betas", "eps", "weight_decay"]
    settings = vars(cls(make_params().items()).settings)
    shown = {name: each.default for name, each in parameters.items() if name not in ("params", "options")}
    assert shown == {name: value for name, value in settings.items() if name in shown}
    assert settings.keys() - shown.keys() == ({"state"} if cls.__name__.endswith("8bit") else set())
    by_keyword = [name for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY]
    assert by_keyword == list(shown)[4:]


@classes
def test_the_defaults_may_be_given(cls):
    """All of them at once: as a tool does that reads them off the signature."""
    params = make_params().items()
    given = {
        name: each.default for name, each in inspect.signature(cls).parameters.items() if name in arguments.of(cls)
    }
    assert cls(params, **given).param_groups[0]["techniques"] == cls(params).param_groups[0]["techniques"]


def test_a_subclass_has_the_arguments_of_its_parent_or_says_its_own():
    class Bold(hina_kohya.COptim8bit):
        overrides = {"lr": 3e-3}

    class Narrow(hina_kohya.HinaAdamW):
        def __init__(self, params, speed=1.0):
            super().__init__(params, lr=speed)

    parent, child = (dict(inspect.signature(cls).parameters) for cls in (hina_kohya.COptim8bit, Bold))
    assert child.pop("lr").default == Bold(make_params().items()).param_groups[0]["lr"] == 3e-3
    assert parent.pop("lr").default == 1e-4
    assert child == parent
    assert list(inspect.signature(Narrow).parameters) == ["params", "speed"]


def test_an_override_of_what_is_no_argument_is_an_error():
    class Wrong(hina_kohya.HinaAdamW):
        overrides = {"use_context": True}

    with pytest.raises(ValueError, match="Wrong sets 'use_context', which is no argument of it"):
        Wrong(make_params().items())


@classes
def test_copies_have_the_same_settings(cls):
    optimizer = cls(make_params().items(), use_tam=True)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.settings == optimizer.settings


@pytest.mark.parametrize("path", make_arguments.FILES, ids=lambda path: path.name)
def test_what_is_written_from_the_table_is_up_to_date(path):
    text = make_arguments.FILES[path]()
    assert path.read_text(encoding="utf-8") == text, "run python scripts/make_arguments.py"


# Every argument of every class

OTHER = {"state": "bf16", "profile": "quality_optimized", "decay_roles": "all", "lora_scale": 0.5,
         "momentum_scales": (1, 3), "min_lr": 5e-5, "max_lr": 5e-3, "lr_bump": 1e-5,
         "wd_transition_steps": 7}  # fmt: skip
CONTEXT = {
    "full_finetune": {"use_alora": True},
    "tam_paper_form": {"use_tam": True},
    "use_cautious": {"use_context": False},
    "eps": {},
    "betas": {},
}


def other(row, tmp_path, cls):
    """A value that is not the default."""
    if row.name == "preset":
        (tmp_path / "mine.toml").write_text(f'optimizer = "{cls.removesuffix("8bit")}"\n[arguments]\nuse_tam = true\n')
        return str(tmp_path / "mine.toml")
    if row.name in OTHER:
        return OTHER[row.name]
    if isinstance(row.start, bool):
        return not row.start
    if isinstance(row.start, tuple):
        return tuple(number / 2 for number in row.start)
    return next(x for x in (0.5, 0.05, 2.0, 7) if x in Interval(row.bounds()) and x != row.start)


def context(cls, row):
    """What has to be on for it to act."""
    rows = arguments.of(CLASSES[cls])
    if isinstance(row, Switch) or row.name in CONTEXT:
        return {name: value for name, value in CONTEXT.get(row.name, {}).items() if name in rows}
    return {each.name: True for each in rows.values() if isinstance(each, Switch) and each.target in row.techniques}


def outcome(cls, given, caplog):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        optimizer = make(cls, **{"lr": 1e-4, **given})
    found = getattr(optimizer, "_relations", None)
    engine = optimizer._codec.name, optimizer._decay_roles, optimizer._scale, optimizer._override, optimizer._compile
    group = {key: value for key, value in optimizer.param_groups[0].items() if key not in ("params", "param_names")}
    return repr(
        (group, engine, found and vars(found), [r.message for r in caplog.records if "without" not in r.message])
    )


@each
def test_no_argument_is_without_effect(cls, row, tmp_path, caplog):
    base, value = context(cls, row), other(row, tmp_path, cls)
    assert outcome(cls, base, caplog) != outcome(cls, {**base, row.name: value}, caplog)
    assert not [r.message for r in caplog.records if "without effect" in r.message and row.name in r.message]


@pytest.mark.parametrize(("cls", "row"), [(cls, row) for cls, row in EACH if row.bounds() or row.annotation() is bool])
def test_a_bad_value_is_refused_by_its_name(cls, row):
    wrong = float(row.bounds()[1:-1].split(",")[0]) - 1 if row.bounds() else "x"
    value, label = (wrong, row.name) if not isinstance(row, Numbers) else ((wrong, *row.start[1:]), row.label(0))
    with pytest.raises(ValueError, match="is outside" if row.bounds() else "is not a yes or no") as refusal:
        make(cls, **{row.name: value})
    assert str(refusal.value).startswith(f"{label} = {wrong!r} ")


@classes
def test_names_of_other_classes_are_unknown(cls):
    for name in {row.name for row in arguments.ROWS} - {*arguments.of(cls), *arguments.fixed(cls)}:
        with pytest.raises(TypeError, match=f"unknown argument '{name}'"):
            cls(make_params().items(), **{name: True})


def test_the_table_names_what_is_there():
    for row in arguments.ROWS:
        named = {*row.techniques, *getattr(row, "excludes", ()), *getattr(row, "beside", ())}
        assert named <= {*registry.techniques()}, row.name
        assert isinstance(row, Own | Option)
        if isinstance(row, Option) and not isinstance(row, Numbers):  # the value is checked by the first one's bounds
            assert len({field.metadata["interval"] for field in row.fields()}) <= 1, row.name
        assert any(
            name in [parent.__name__ for parent in cls.__mro__] for cls in CLASSES.values() for name in row.classes
        )


@pytest.mark.parametrize("path", sorted(presets.folder().glob("*.toml")), ids=lambda path: path.stem)
def test_presets_have_arguments_of_their_class_only(path):
    content = toml.load(path)
    arguments.checked(arguments.of(CLASSES[content["optimizer"]]), content["arguments"])


# One place


@dc.dataclass(frozen=True)
class Toy(Technique):
    """Doubles the update. Nothing else."""

    name, stage = "toy", Stage.UPDATE
    size: float = hyper(2.0, "(0, 9]", doc="what the update is multiplied by")

    def apply(self, s, state):
        return s.but(update=s.update * self.size)


TOY = (Switch("use_toy", "toy", ("COptim",)), Option("toy_size", "toy.size", ("COptim",)))


def everything(capsys):
    """Whatever a user can read about arguments."""
    for name in CLASSES:
        assert main(["optimizers", name]) == 0
    signatures = [str(inspect.signature(cls)) for cls in CLASSES.values()]
    with pytest.raises(TypeError) as unknown:
        make("COptim", qqq=1)
    return "\n".join([capsys.readouterr().out, *signatures, make_arguments.stub(), make_arguments.page(), str(unknown)])


@pytest.mark.slow
def test_a_technique_comes_and_goes_with_its_file_and_its_rows(monkeypatch, capsys, caplog):
    with monkeypatch.context() as patch:
        patch.setitem(registry._TECHNIQUES, "toy", Toy)
        patch.setattr(arguments, "ROWS", (*arguments.ROWS, *TOY))
        text = everything(capsys)
        for said in (
            "toy_size: float = 2.0",
            "use_toy: bool = False",
            "(0, 9]",
            "toy: what the update is multiplied by",
        ):
            assert said in text
        assert "| `use_toy` | False |  | COptim | toy: Doubles the update. |" in text
        assert {"use_toy", "toy_size"} <= inspect.signature(hina_kohya.COptim8bit).parameters.keys()
        assert "use_toy" not in inspect.signature(hina_kohya.HinaAdamW).parameters
        with pytest.raises(ValueError, match=r"toy_size = 10 is outside \(0, 9\]; the default is 2.0"):
            make("COptim", toy_size=10)
        with pytest.raises(ValueError, match="toy.size was given, but toy is off; add use_toy=True"):
            make("COptim", **{"toy.size": 3.0})
        with pytest.raises(TypeError, match="unknown argument 'toy_sise'; did you mean toy_size"):
            make("COptim", toy_sise=1)
        make("COptim", toy_size=3.0)
        assert "without effect, since the technique is off: toy_size" in caplog.text
        steps = []
        for given in ({}, {"use_toy": True, "toy_size": 4.0}):
            params = make_params(torch.float64)
            optimizer = hina_kohya.COptim(params.items(), weight_decay=0.0, use_context=False, **given)
            before = params["head.weight"].detach().clone()
            for param in params.values():
                param.grad = torch.ones_like(param)
            optimizer.step()
            steps.append(params["head.weight"].detach() - before)
        torch.testing.assert_close(steps[1], 4 * steps[0])
    assert "toy" not in everything(capsys)
    with pytest.raises(TypeError, match="unknown argument 'use_toy'"):
        make("COptim", use_toy=True)


def test_a_row_without_its_technique_says_so(monkeypatch):
    monkeypatch.setattr(arguments, "ROWS", (*arguments.ROWS, *TOY))
    with pytest.raises(ValueError, match="there is no technique 'toy'"):
        make("COptim")
