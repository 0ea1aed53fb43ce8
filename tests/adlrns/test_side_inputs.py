"""Models that are given more than one input, compressed: whatever a batch has is sorted with its samples."""

import dataclasses as dc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hina_kohya.adlrns import ADLRNSTrainer, DynamicLowRankLayer, compress


class Masked(nn.Module):
    """torch's own encoder with a key padding mask, a mask over tokens that all samples share, and a head."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x, key_padding_mask=None, mask=None):
        return self.head(self.encoder(x, mask=mask, src_key_padding_mask=key_padding_mask)).mean(1)


class Crossed(nn.Module):
    """Attention over a context of other features and length, and a time for each sample or for all."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.time = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8))
        self.out = nn.Linear(8, 8)

    def forward(self, x, t, context, *, more=None):
        t = t.expand(len(x)) if t.dim() == 0 else t
        y = nn.functional.scaled_dot_product_attention(self.q(x), self.k(context["text"]), self.v(context["text"]))
        y = self.out(y) + self.time(t)[:, None]
        return y if more is None else y + more[0]


@dc.dataclass
class Output:
    tokens: torch.Tensor
    pooled: torch.Tensor | None = None


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, kind):
        y = self.layer(x)
        return {"dataclass": Output(y, y.mean(1)), "tuple": (y, [y.mean(1)]), "dict": {"y": y, "none": None}}[kind]


def batch(n, seed=0, tokens=5):
    """x with samples of all sizes, a mask of which the first token is seen, times, a context."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, tokens, 8, generator=random) * torch.randn(n, 1, 1, generator=random).exp()
    mask = torch.rand(n, tokens, generator=random) < 0.4
    mask[:, 0] = False
    text = torch.randn(n, 7, 6, generator=random)
    return x, mask, torch.randint(10, (n,), generator=random), text


def masked(budget=120.0):
    torch.manual_seed(0)
    model = Masked().eval()
    data = [batch(48, seed) for seed in range(3)]
    side = lambda part: {"key_padding_mask": part[1], "mask": torch.zeros(5, 5)}
    return compress(model, data, budget, side=side, shared=["mask"]), model


def crossed(budget=120.0):
    torch.manual_seed(0)
    model = Crossed()
    side = lambda part: {"t": part[2], "context": {"text": part[3]}}
    return compress(model, [batch(48, seed) for seed in range(3)], budget, side=side), model


MASKED, CROSSED = masked(), crossed()
CALLS = {
    "mask": (MASKED[0], lambda m, x, mask, t, text: m(x, mask)),
    "mask by name": (MASKED[0], lambda m, x, mask, t, text: m(x, key_padding_mask=mask)),
    "both masks": (MASKED[0], lambda m, x, mask, t, text: m(x, mask, torch.eye(5) - 1)),
    "context": (CROSSED[0], lambda m, x, mask, t, text: m(x, t, {"text": text})),
    "context by name": (CROSSED[0], lambda m, x, mask, t, text: m(x, context={"text": text}, t=t)),
    "one time for all": (CROSSED[0], lambda m, x, mask, t, text: m(x, torch.tensor(3), {"text": text})),
    "in a list": (CROSSED[0], lambda m, x, mask, t, text: m(x, t, {"text": text}, more=[x.flip(1)])),
}


@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 12), seed=st.integers(0, 1000), permute=st.randoms(use_true_random=False))
def test_a_sample_is_the_same_alone_in_any_company_and_in_any_order(call, n, seed, permute):
    model, run = CALLS[call]
    inputs = batch(n, seed)
    with torch.no_grad():
        y = run(model, *inputs)
        alone = torch.cat([run(model, *(part[i : i + 1] for part in inputs)) for i in range(n)])
        order = list(range(n))
        permute.shuffle(order)
        torch.testing.assert_close(y, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run(model, *(part[order] for part in inputs)), y[order], rtol=1e-4, atol=1e-5)


def test_at_full_rank_they_are_the_models_themselves():
    x, mask, t, text = batch(48)
    model, dense = masked(400.0)
    assert model(x).shape == dense(x).shape
    with torch.no_grad():
        torch.testing.assert_close(model(x, mask), dense(x.clone().requires_grad_(), mask), rtol=1e-3, atol=1e-4)
    model, dense = crossed(400.0)
    torch.testing.assert_close(model(x, t, {"text": text}), dense(x, t, {"text": text}), rtol=1e-3, atol=1e-3)


def test_layers_of_the_other_inputs_are_compressed_too():
    assert set(CROSSED[0].layers) == {"q", "k", "v", "time.1", "out"}
    assert {f"encoder.layers.{n}.linear{k}" for n in (0, 1) for k in (1, 2)} | {"head"} == set(MASKED[0].layers)
    places = {place.name: place.macs for place in CROSSED[0].places}
    assert places == {"q": 5 * 64, "k": 7 * 48, "v": 7 * 48, "time.1": 64, "out": 5 * 64}


@pytest.mark.parametrize("kind", ["dataclass", "tuple", "dict"])
def test_several_outputs_come_back_in_order(kind):
    torch.manual_seed(0)
    model = Several()
    done = compress(model, [batch(48)[0]], 200.0, side=lambda _: {"kind": kind})
    x = batch(9, 1)[0]
    y, expected = done(x, kind), model(x, kind)
    assert type(y) is type(expected)
    for one, other in {
        "dataclass": lambda: ((y.tokens, expected.tokens), (y.pooled, expected.pooled)),
        "tuple": lambda: ((y[0], expected[0]), (y[1][0], expected[1][0])),
        "dict": lambda: ((y["y"], expected["y"]),),
    }[kind]():
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_tokens_have_one_cell():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 6))
    tokens = torch.randint(20, (40, 5))
    with pytest.raises(ValueError, match="whole numbers can be the input with cells=1 only"):
        compress(model, [tokens], 60.0)
    done = compress(model, [tokens], 60.0, cells=1)
    assert set(done.layers) == {"1", "3"}
    assert 100 * done.planned / done.dense_macs <= 60
    full = compress(model, [tokens], 300.0, cells=1)
    torch.testing.assert_close(full(tokens), model(tokens), rtol=1e-3, atol=1e-3)


class Two(nn.Module):
    """Its second input has a batch of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, other):
        return self.first(x) + self.second(other).mean(0)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, inside=False):
        return self.second(self.first(x) - x.mean(0)) if inside else self.second(self.first(x)) - x.mean(0)


class Told(nn.Module):
    """Is given what is not a tensor."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, words, cache=None):
        return {"y": self.layer(x), "cache": cache} if words == "back" else self.layer(x)


def told(words, shared=(), **more):
    done = compress(Told(), [batch(48)[0]], 150.0, side=lambda _: {"words": words, **more}, shared=shared)
    return done(batch(3)[0], words)


def test_what_is_the_same_for_all_samples_may_be_anything():
    assert told(["a", "b", "c"], shared=["words"]).shape == (3, 5, 8)
    assert told(3).shape == told("one").shape == told(None).shape == told((1, "two")).shape == (3, 5, 8)


def with_other(shape, **more):
    return compress(Two(), [batch(48)[0]], 150.0, side=lambda _: {"other": torch.randn(shape)}, **more)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: with_other((3, 8)), r"side input other has shape \(3, 8\) for a batch of 48 samples; .* shared=\['o"),
        (lambda: with_other((3, 8), shared=["other"]), r"second is given \(3, 8\) for a batch of 4 samples; .*exclude"),
        (lambda: with_other((4, 8), shared=["other"]), "what second is given for a sample depends on the batch"),
        (lambda: with_other((48, 5, 8)), "what the model returns for a sample depends on the batch"),
        (lambda: compress(Mixing(), [batch(48)[0]], 150.0), "what the model returns for a sample depends on the batch"),
        (
            lambda: compress(Mixing(), [batch(48)[0]], 150.0, side=lambda _: {"inside": True}),
            r"what second is given for a sample depends on the batch .* exclude it: exclude=\['second'\]",
        ),
        (lambda: told(["a", "b", "c"]), r"words is a list of numbers or texts, in which samples cannot be told apart"),
        (lambda: told({"sizes": [3, 4]}), r"words.sizes is a list of numbers .* shared=\['words'\]"),
        (lambda: told(np.zeros(48)), "words is a ndarray, in which samples cannot be told apart; use tensors"),
        (lambda: told("back", shared=["cache"], cache=object()), "output.cache is a object, in which samples"),
        (lambda: MASKED[0](batch(6)[0], batch(7)[1]), r"key_padding_mask has shape \(7, 5\) for a batch of 6 samples"),
        (
            lambda: CROSSED[0](batch(6)[0], torch.tensor(3), {"text": batch(1)[3]}),
            r"side input context.text has shape \(1, 7, 6\) for a batch of 6 samples",
        ),
        (lambda: CROSSED[0](batch(6)[0], torch.tensor([3]), {"text": batch(6)[3]}), r"side input t has shape \(1,\)"),
    ],
)
def test_what_has_no_row_per_sample_is_refused(call, says):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=says):
        call()


def test_a_layer_that_is_shared_can_be_left_out():
    done = with_other((3, 8), shared=["other"], exclude=["second"])
    x, other = batch(9, 1)[0], torch.randn(3, 8)
    second = done.model.second
    difference = second(other).mean(0) - second.bias
    torch.testing.assert_close(done(x, other), done(x, other * 0) + difference)


def test_training_goes_on_with_all_inputs():
    """Of a compressed model, and of one with layers of its own."""
    torch.manual_seed(0)
    model = crossed(100.0)[0]
    batches = [(x, x, {"t": t, "context": {"text": text}}) for x, _, t, text in (batch(32, seed) for seed in range(3))]
    history = ADLRNSTrainer(model, {"train": {"lr": 1e-2}, "scheduler": {"budget": 90.0}}).train(batches, batches, 6)
    assert history[-1]["val_loss"] < 0.9 * history[0]["val_loss"]
    assert compress(Crossed(), batches, 120.0).layers.keys() == model.layers.keys()

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = DynamicLowRankLayer(8, 8, 8, r_min=1)

        def forward(self, x, t):
            return self.layer(x)[0] + t[:, None, None]

    own = [(x, x + t[:, None, None], {"t": t}) for x, _, t, _ in (batch(32, seed) for seed in range(3))]
    history = ADLRNSTrainer(Own(), {"train": {"lr": 1e-2}, "scheduler": {"budget": 150.0}}).train(own, own, 6)
    assert history[-1]["val_loss"] < 0.9 * history[0]["val_loss"]


@pytest.mark.slow
def test_a_unet_with_the_states_of_a_text_encoder():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()

    def data(n, seed):
        _, _, t, text = batch(n, seed)
        scale = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed)).exp()
        return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * scale, t * 100, text

    done = compress(
        model,
        [data(24, seed) for seed in range(2)],
        70.0,
        side=lambda part: {"timestep": part[1], "encoder_hidden_states": part[2]},
    )
    assert {name for name in done.layers if name.endswith("attn2.to_k")}
    assert any(name.startswith("time_embedding") for name in done.layers)
    x, t, text = data(7, 5)
    with torch.no_grad():
        y = done(x, t, encoder_hidden_states=text).sample
        alone = torch.cat([done(x[i : i + 1], t[i : i + 1], text[i : i + 1]).sample for i in range(7)])
        assert done(x, 300, text, return_dict=False)[0].shape == y.shape
        error = (y - model(x, t, text).sample).norm() / model(x, t, text).sample.norm()
    torch.testing.assert_close(y, alone, rtol=1e-3, atol=1e-4)
    assert error < 0.7
    assert 100 * done.planned / done.dense_macs <= 70


@pytest.mark.slow
def test_a_text_encoder_of_tokens():
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=9, projection_dim=16, eos_token_id=59,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    tokens = torch.randint(58, (40, 9))
    mask = torch.rand(40, 9) < 0.8
    mask[:, 0] = True
    done = compress(model, [(tokens, None, {"attention_mask": mask})], 90.0, cells=1)
    assert len(done.layers) == 2 * 6
    assert 100 * done.planned / done.dense_macs <= 90
    output = done(tokens[:5], attention_mask=mask[:5])
    expected = model(tokens[:5], attention_mask=mask[:5])
    assert type(output) is type(expected)
    assert (output.last_hidden_state - expected.last_hidden_state).norm() < 0.5 * expected.last_hidden_state.norm()
    full = compress(model, [(tokens, None, {"attention_mask": mask})], 200.0, cells=1)
    torch.testing.assert_close(
        full(tokens, mask).pooler_output, model(tokens, mask).pooler_output, rtol=1e-2, atol=1e-2
    )
