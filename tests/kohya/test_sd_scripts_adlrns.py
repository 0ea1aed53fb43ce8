"""ADLRNS in sd-scripts: both ways in, saved and resumed, checkpointing, two processes, and plain files for others."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hina_kohya.adlrns import create_network
from hina_kohya.adlrns.adapter import memory
from hina_kohya.cli import main
from hina_kohya.trainers import hooks
from tests.kohya.double import tiny_models

ARGS = ("bins=3", "budget=2", "warmup=2", "refresh_every=2")
OURS = {"network": "hina_kohya.adlrns", "network_args": ARGS}
WAYS = {
    "hina_kohya.adlrns": OURS,
    "lycoris.kohya": {"network_args": ("algo=adlrns", *ARGS), "hooks": True},
    "hina_kohya.network": {
        "network": "hina_kohya.network",
        "network_args": ("inner=lycoris.kohya", "algo=adlrns", *ARGS),
    },
}
ENDINGS = {"lora_up.weight", "lora_down.weight", "alpha", "adlrns_kept", "adlrns_stats"}
STAYS = {"optimizer": "SGD", "lr": "1e-30"}


def tables(tensors):
    return {name: each.bool() for name, each in tensors.items() if name.endswith("adlrns_kept")}


@pytest.fixture(scope="module")
def known():
    """Trainings by trainer, so that no test repeats another's."""
    return {}


@pytest.fixture
def first(trainer, known, tmp_path_factory):
    """Six steps with hina_kohya.adlrns, its state saved."""
    if trainer.name not in known:
        folder, trainer.folder = trainer.folder, tmp_path_factory.mktemp("first")
        known[trainer.name] = trainer.train(**OURS, steps=6, extra=("--save_state",))
        trainer.folder = folder
    return known[trainer.name]


def same(one, other, **how):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, **how, msg=lambda text, name=name: f"{name}: {text}")


def test_a_training_chooses_directions_within_the_budget(first):
    assert len(first.losses) == 6
    assert "adlrns step 2: cost 2 of 2" in first.log
    assert {name.partition(".")[2] for name in first.tensors} == ENDINGS
    kept = tables(first.tensors)
    assert {name.startswith("lora_te"): len(table) for name, table in kept.items()} == {True: 1, False: 3}
    cost = sum(float(table.double().mean(0).sum()) for table in kept.values()) / len(kept)
    assert 1 <= cost <= 2 + 1e-9
    assert first.meta["ss_network_module"] == "hina_kohya.adlrns"
    assert json.loads(first.meta["hina_adlrns"])["bins"] == 3
    assert any(tensor.any() for name, tensor in first.tensors.items() if name.endswith("lora_up.weight"))


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way != "hina_kohya.adlrns"])
def test_every_way_in_is_the_same_training(trainer, first, way):
    report = trainer.train(**WAYS[way], steps=6)
    assert report.losses == first.losses
    assert report.bits == first.bits


@pytest.mark.slow
def test_network_weights(trainer, first):
    report = trainer.train(**OURS, **STAYS, steps=1, extra=("--network_weights", str(first.weights)))
    assert "missing_keys" not in report.log
    same(first.tensors, report.tensors)


@pytest.mark.slow
def test_the_wrong_number_of_bins_stops(trainer, first):
    other = {**OURS, "network_args": ("bins=4",)}
    report = trainer.train(**other, steps=1, extra=("--network_weights", str(first.weights)), rc=1)
    assert "write bins=3 and network_dim=4 as the file was made with" in report.log


@pytest.mark.slow
def test_resuming_from_a_state(trainer, first):
    """Refreshes at steps 2, 4, 6 count on: a training that was never stopped says what its memory must be."""
    saved = load_file(first.out / "lora-state" / "model.safetensors")
    same({name: table.sum(1) for name, table in tables(saved).items()},
         {name: table.sum(1) for name, table in tables(first.tensors).items()})  # fmt: skip
    again = ("--resume", str(first.out / "lora-state"), "--skip_until_initial_step", "--save_state")
    report = trainer.train(**OURS, steps=7, extra=again)
    assert len(report.losses) == 1
    assert "adlrns step 6: " in report.log
    assert "adlrns step 2: " not in report.log
    resumed = load_file(report.out / "lora-state" / "model.safetensors")
    states = [torch.load(run.out / "lora-state" / "optimizer.bin", weights_only=True) for run in (first, report)]
    assert [{int(each["step"]) for each in state["state"].values()} for state in states] == [{6}, {7}]
    whole = trainer.train(**OURS, steps=7, extra=("--save_state",))
    assert "adlrns step 6: " in whole.log
    never = load_file(whole.out / "lora-state" / "model.safetensors")
    same(tables(never), tables(resumed))
    modules, bins, dim = len(tables(never)), 3, 4
    known = 2 + bins + modules + bins * modules * (1 + 4 * dim)  # then the sums of step 6, whose noise is another
    assert torch.equal(never[memory.NAME][:known], resumed[memory.NAME][:known])


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(trainer, first):
    report = trainer.train(**OURS, steps=6, extra=("--gradient_checkpointing",))
    assert report.losses == pytest.approx(first.losses, rel=1e-5)
    same(tables(first.tensors), tables(report.tensors))
    same(first.tensors, report.tensors, rtol=1e-3, atol=1e-5)  # Adam's first steps magnify rounding


@pytest.mark.slow
def test_two_processes_have_the_same_tables_and_bits(trainer):
    args = ("bins=2", "budget=2", "warmup=2", "refresh_every=5", "probe_every=1")
    report = trainer.train(
        network="tests.support.adlrns_probe", network_args=args, launch="torchrun", steps=18,
        optimizer="tests.support.rank_probe.Probe",
    )  # fmt: skip
    for kind, count in (("rank", 18), ("tables", 3)):
        mine, other = ((report.out / f"{kind}{rank}.txt").read_text().splitlines() for rank in (0, 1))
        assert mine == other
        assert len(set(mine)) == len(mine) == count
    # by the last choice more samples were seen than it takes to leave the uniform prior
    assert len({tuple(table.sum(1).tolist()) for table in tables(report.tensors).values() if len(table) == 2}) > 1


@pytest.mark.slow
def test_full_bf16(trainer):
    report = trainer.train(**OURS, steps=4, extra=("--mixed_precision", "bf16", "--full_bf16"))
    assert len(report.losses) == 4
    for name, tensor in report.tensors.items():
        assert tensor.isfinite().all(), name
        assert not name.endswith("kept") or set(tensor.flatten().tolist()) <= {0.0, 1.0}, name


# Plain files


@pytest.fixture
def file(trainer, tmp_path):
    """A file for the double's model: other directions and strengths in every state and module. And its network."""
    preset = tmp_path / "preset.toml"
    blocks = ["Transformer2DModel", "ResnetBlock2D"] if trainer.name == "sd-scripts" else ["Transformer2DModel"]
    preset.write_text(
        f"enable_conv = true\nunet_target_module = {blocks}\nunet_target_name = []\n"
        'text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]\ntext_encoder_target_name = []\n'
    )
    torch.manual_seed(0)
    (encoder,), unet = tiny_models.build("sd")
    words = {"preset": str(preset), "conv_dim": "6", "conv_alpha": "3", "bins": "3"}
    network = create_network(1.0, 6, 3, None, encoder, unet, **words)
    network.apply_to(encoder, unet, True, True)
    for lora in network.adlrns_modules():
        torch.nn.init.normal_(lora.lora_up.weight, std=0.2)
        shape = lora.adlrns_kept.shape
        lora.set_table(torch.rand(shape) < 0.5, torch.randn(shape), torch.rand(shape) + 0.1)
    path = tmp_path / "lora.safetensors"
    network.eval().save_weights(str(path), None, {})
    network.load_weights(str(path))  # sorted by gain
    yield path, preset, network, lambda timestep: unet(*tiny_models.example(encoder, timestep))
    hooks.uninstall()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 4, 6])
def test_an_exported_rank_elsewhere_is_the_module_at_that_rank(trainer, file, rank, tmp_path):
    path, preset, network, module = file
    plain = str(tmp_path / "plain.safetensors")
    assert main(["adlrns", "export", str(path), "--rank", str(rank), "-o", plain]) == 0
    for lora in network.adlrns_modules():
        lora.set_table((torch.arange(6) < rank).expand(lora.adlrns_kept.shape), *lora.adlrns_stats.clone())
    expected = module(500).flatten()
    alpha = 3 * rank / 6
    conv = {"conv_dim": str(rank), "conv_alpha": str(alpha)}
    for answer in (
        trainer.ask("outputs", "networks.lora", plain, 500),
        trainer.ask("outputs", "networks.lora", plain, 500, dim=rank, alpha=alpha, **conv),
        trainer.ask("outputs", "lycoris.kohya", plain, 500, dim=rank, alpha=alpha, preset=str(preset), **conv),
    ):
        torch.testing.assert_close(torch.tensor(answer), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_budget_elsewhere(trainer, file, tmp_path):
    """Modules of different ranks, some without any, as --dim_from_weights reads them."""
    path, _, network, module = file
    plain = str(tmp_path / "plain.safetensors")
    assert main(["adlrns", "export", str(path), "--budget", "2", "-o", plain]) == 0
    tensors = load_file(plain)
    for lora in network.adlrns_modules():
        down = tensors.get(f"{lora.lora_name}.lora_down.weight")
        rank = 0 if down is None else len(down)
        lora.set_table((torch.arange(6) < rank).expand(lora.adlrns_kept.shape), *lora.adlrns_stats.clone())
    answer = trainer.ask("outputs", "networks.lora", plain, 500)
    torch.testing.assert_close(torch.tensor(answer), module(500).flatten(), rtol=1e-5, atol=1e-5)


def test_an_export_goes_on_as_a_lora_of_sd_scripts(trainer, first, tmp_path):
    plain = tmp_path / "plain.safetensors"
    assert main(["adlrns", "export", str(first.weights), "--rank", "2", "-o", str(plain)]) == 0
    again = ("--network_weights", str(plain), "--dim_from_weights")
    report = trainer.train(network="networks.lora", **STAYS, steps=1, extra=again)
    exported = load_file(plain)
    theirs = {name: tensor for name, tensor in exported.items() if "time_embedding" not in name}  # of LyCORIS alone
    assert len(theirs) >= 3 * 18
    same(theirs, report.tensors)
