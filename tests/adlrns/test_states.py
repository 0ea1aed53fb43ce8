"""Which state a call is in: every model of the trainers we know, models nobody knows, and whose turn a backward is."""

import logging

import pytest
import torch
from torch import nn

from hina_kohya.adlrns.adapter.states import States
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from tests.support.small_networks import UNet, create, frozen, randomise

KNOWN = [(trainer.name, model, fact) for trainer in (SD_SCRIPTS, MUSUBI) for model, fact in trainer.timesteps.items()]
NOISE = torch.tensor([0.02, 0.4, 0.6, 0.99])
X = torch.zeros(4, 3, 2)


def model_of(name, argument, bases=(nn.Module,), output=lambda x: x):
    """A class of that name, whose forward has that argument third of four."""
    namespace = {"output": staticmethod(output)}
    exec(f"def forward(self, x, context=None, {argument}=None, more=None):\n    return self.output(x)", namespace)
    return type(name, bases, namespace)()


def given(noise, fact):
    """What a trainer gives such a model."""
    return fact.largest * (1 - noise if fact.falls else noise)


def bins(states):
    return states.batch(True).states


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "hina_kohya")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("by", ["keyword", "position"])
@pytest.mark.parametrize(("trainer", "name", "fact"), KNOWN, ids=[f"{trainer}-{name}" for trainer, name, _ in KNOWN])
def test_every_known_model_has_noise_in_its_last_bin(trainer, name, fact, by, warnings):
    model = model_of(name, fact.argument)
    for subject in (model, model_of("Heir", fact.argument, (type(model),))):
        states = States(4)
        states.attach(subject)

        def call(noise, dtype=torch.float32, subject=subject):
            timesteps = given(noise, fact).to(dtype)
            subject(X, None, timesteps) if by == "position" else subject(X, **{fact.argument: timesteps})

        for dtype in (torch.float32, torch.bfloat16):
            call(NOISE, dtype)
            assert (bins(states), states.samples) == ((0, 1, 2, 3), 4)
            call(torch.tensor([1.0, 0.0]), dtype)
            assert (bins(states), states.samples) == ((3, 0), 2)
        call(torch.tensor([0.0]))  # one sample of a batch by itself, whatever X is
        assert (bins(states), states.samples) == ((0,), 1)
        call(torch.tensor(0.6))  # as samplers give it: one for all
        assert (bins(states), states.samples) == ((2,), 4)
    assert not warnings()


def test_integers_are_timesteps_too():
    for name in ("UNet2DConditionModel", "HYImageDiffusionTransformer"):
        states, model = States(4), model_of(name, "timestep")
        states.attach(model)
        model(X, timestep=torch.tensor([0, 250, 999, 1000]))
        assert bins(states) == (0, 1, 3, 3)


def test_musubi_tuner_counts_from_one():
    states, model = States(4), model_of("WanModel", "t")
    states.attach(model)
    model(X, t=torch.tensor([1.0, 1000.9]))
    assert bins(states) == (0, 3)
    states, model = States(4), model_of("ZImageTransformer2DModel", "t")
    states.attach(model)
    model(X, t=(1000 - torch.tensor([1.0, 1000.9])) / 1000)
    assert bins(states) == (0, 3)


# Models nobody told us of


@pytest.mark.parametrize(
    ("values", "scale", "expected"),
    [
        (torch.tensor([0.1, 0.6]), 1, (0, 2)),
        (torch.tensor([100.0, 600.0]), 1000, (0, 2)),
        (torch.tensor([0, 999]), 1000, (0, 3)),
        (torch.tensor([1]), 1000, (0,)),  # a whole number, so not noise alone
        (torch.tensor([1.0]), 1, (3,)),
    ],
)
def test_the_values_of_an_unknown_model_tell_its_scale(values, scale, expected, warnings):
    states, model = States(4), model_of("Unheard", "timestep")
    states.attach(model)
    for _ in range(2):
        model(X, timestep=values)
        assert bins(states) == expected
    (said,) = warnings()
    assert f"how Unheard is given its timesteps is not known here. By their values ({values[0]:g}" in said
    assert f"from 0 to {scale}; larger ones are taken for noisier" in said
    assert f"write timesteps={1000 if scale == 1 else 1}" in said


def test_a_value_above_one_corrects_what_was_believed(warnings):
    states, model = States(4), model_of("Unheard", "timestep")
    states.attach(model)
    for timestep, expected in ((0.9, 3), (600.0, 2), (0.9, 0)):
        model(X, timestep=torch.tensor([timestep]))
        assert bins(states) == (expected,)
    first, second = warnings()
    assert "from 0 to 1;" in first
    assert "from 0 to 1000, not from 0 to 1 as was believed so far" in second


@pytest.mark.parametrize("name", ["Unheard", "WanModel", "NextDiT"])
def test_the_users_scale_wins_without_a_word(name, warnings):
    for largest in (1, 1000, 50):
        states, model = States(4, timesteps=largest), model_of(name, "t")
        states.attach(model)
        model(X, t=torch.tensor([0.02, 0.98]) * largest)
        assert bins(states) == ((3, 0) if name == "NextDiT" else (0, 3))
    assert not warnings()


def test_a_timestep_that_cannot_be():
    for name, timesteps, value, fix in (
        ("Flux", None, 500.0, "write timesteps=1000 in network_args"),
        ("Unheard", 1, 500.0, "write timesteps=1000 in network_args"),
        ("WanModel", None, 1500.0, "write the largest as timesteps="),
        ("Unheard", None, 1500.0, "write the largest as timesteps="),
        ("MMDiT", None, -20.0, "write the largest"),
    ):
        argument = "timesteps" if name == "Flux" else "t"
        states, model = States(4, timesteps=timesteps), model_of(name, argument)
        states.attach(model)
        with pytest.raises(ValueError, match=rf"{name} was given a timestep of {value:g}, outside 0 to 1.*; {fix}"):
            model(X, **{argument: torch.tensor([value])})
        with pytest.raises(ValueError, match="not finite"):
            model(X, **{argument: torch.tensor([float("nan")])})


def test_a_model_without_a_timestep():
    for bins_ in (2, 1):
        states = States(bins_)
        if bins_ > 1:
            with pytest.raises(
                ValueError, match=r"Linear.forward\(input\) has no timesteps or timestep or t; write bins"
            ):
                states.attach(nn.Linear(2, 2))
        else:
            states.attach(nn.Linear(2, 2))
    states, model = States(2), model_of("WanModel", "t")
    states.attach(model)
    with pytest.raises(ValueError, match="WanModel was called without t; write bins=1"):
        model(X)


def test_a_known_name_with_another_signature_is_unknown(warnings):
    """As Qwen3VLForConditionalGeneration of transformers itself."""
    states, model = States(4), model_of("ZImageTransformer2DModel", "timesteps")
    states.attach(model)
    model(X, timesteps=torch.tensor([0.1]))
    assert bins(states) == (0,)
    assert "is not known here" in warnings()[0]


# Whose turn it is


def test_a_call_without_gradients_is_a_look_aside():
    """A prior's, or a sample's: the backward of the call before is to come."""
    states, model = States(4), model_of("WanModel", "t", output=lambda x: x * 2)
    states.attach(model)
    x, seen = torch.ones(2, 3, requires_grad=True), []
    y = model(x, t=torch.tensor([900.0, 100.0]))
    x.register_hook(lambda _: seen.append((bins(states), states.samples)))
    with torch.no_grad():
        model(torch.ones(3, 3), t=torch.tensor([400.0, 400.0, 400.0]))
    assert bins(states) == (1, 1, 1)
    y.sum().backward()
    assert seen == [((3, 0), 2)]


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [True, False])
def test_samples_called_one_by_one_are_computed_again_in_their_own_states(reentrant):
    """Kandinsky 5 and HiDream-O1: several calls, then one backward, in which checkpoints run the modules again."""
    gradients = []
    for how in (None, reentrant):
        unet = frozen(UNet())
        network = create(unet, bins=3, warmup=0, probe_every=1000)
        randomise(network)
        unet.block.how = how
        network.adlrns_states.probing = False
        x = torch.randn(3, 1, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        torch.stack(
            [unet(each, torch.tensor([t])) for each, t in zip(x, (900, 100, 500), strict=True)]
        ).square().mean().backward()
        gradients.append([param.grad for param in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Sample(dict):
    """As the outputs of transformers and diffusers."""


FORMS = {
    "tensor": lambda y: y,
    "tuple": lambda y: (y,),
    "dict": lambda y: Sample(loss=None, sample=y),
    "a list of samples": list,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_the_output_in_every_form_of_it(form):
    """Sums by state of 1, of the squared gradient of a sample's own loss, and of that times its outputs."""
    states, model = States(4), model_of("WanModel", "t", output=lambda x: FORMS[form](x * 3))
    states.attach(model)
    states.probing = True
    x, weights = torch.randn(3, 16, 2, requires_grad=True), torch.randn(3, 16, 2)
    y = model(x, t=torch.tensor([900.0, 100.0, 950.0]))
    y = (
        torch.stack(y)
        if isinstance(y, list)
        else y["sample"]
        if isinstance(y, dict)
        else y[0]
        if form == "tuple"
        else y
    )
    (y * weights).sum(dim=(1, 2)).mean().backward()
    square = weights.square().sum((1, 2))
    expected = torch.zeros(4, 3)
    for state, each in zip((3, 0, 3), square, strict=True):
        expected[state] += torch.stack([torch.tensor(1.0), each, each * 32])
    torch.testing.assert_close(states.output, expected)


def test_the_frames_of_one_sample_are_one_sample():
    """Kandinsky 5 gives its model [frames, height, width, channels], and one timestep."""
    states, model = States(4), model_of("DiffusionTransformer3D", "time", output=lambda x: x * 3)
    states.attach(model)
    states.probing = True
    x, weights = torch.randn(5, 2, 2, 3, requires_grad=True), torch.randn(5, 2, 2, 3)
    (model(x, None, torch.tensor([900.0])) * weights).sum().backward()
    square = weights.square().sum()
    expected = torch.zeros(4, 3)
    expected[3] = torch.stack([torch.tensor(1.0), square, square * 60])
    torch.testing.assert_close(states.output, expected)
