"""musubi-tuner: the double keeps its contract, and this package in a whole training; the real one where it is.

`musubi.ask` calls one function, see contract.py.
"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hina_kohya.cli import main

HERE = "tests.support.contract"
PROBE = "tests.support.group_probe.AdamW"
LOKR = ("algo=lokr", "factor=4")
NATIVE = {"network": "hina_kohya.network", "network_args": ("inner=networks.lora_wan",)}
OURS = "hina_kohya.optim.hina_adamw.HinaAdamW"
FORGIVING = ("use_cautious=true,", "betas = (0.9,", "0.99)", "state=bf16")


def failed(answer, error, words=""):
    return answer.get("error") == error and words in answer["message"]


# The contract


@pytest.mark.slow
def test_names_of_optimizers(musubi):
    for name, cls in (("AdamW", "torch.optim.adamw.AdamW"), ("adamw", "torch.optim.adamw.AdamW"),
                      ("RAdam", "torch.optim.radam.RAdam"), (f"{HERE}.Recorder", f"{HERE}.Recorder")):  # fmt: skip
        assert musubi.ask("musubi_optimizer", name)["class"] == cls
    assert failed(musubi.ask("musubi_optimizer", "HinaAdamW"), "AttributeError", "HinaAdamW")
    assert failed(musubi.ask("musubi_optimizer", f"{HERE}.Recorder8bit", absent=["bitsandbytes"]), "ImportError")
    assert musubi.ask("musubi_optimizer", "AdamW8bit", present=["bitsandbytes"])["class"] == f"{HERE}.Recorder"
    made = musubi.ask("musubi_optimizer", "Adafactor")
    assert (made["learning_rate"], made["lr_scheduler"]) == (None, "adafactor:0.001")


def test_arguments_of_optimizers(musubi):
    made = musubi.ask("musubi_optimizer", f"{HERE}.Recorder", ["a=(1,2)", "b=None"])
    assert made["options"] == {"a": "(1, 2)", "b": "None"}
    assert made["args"] == "a=(1, 2),b=None"
    assert failed(musubi.ask("musubi_optimizer", f"{HERE}.Recorder", ["a=true"]), "ValueError", "malformed")


def test_five_values_of_which_two_set_the_mode(musubi):
    assert musubi.ask("musubi_optimizer", f"{HERE}.Recorder")["trained"] == [0, 1, -100]
    assert musubi.ask("musubi_optimizer", "AdamW")["trained"] == [None] * 3


@pytest.mark.parametrize(
    ("module", "kwargs", "descriptions", "endings"),
    [
        ("networks.lora_wan", {}, ["unet"], [{"lora_down.weight", "lora_up.weight"}]),
        ("networks.lora_wan", {"loraplus_lr_ratio": "4"}, ["unet", "unet plus"],
         [{"lora_down.weight"}, {"lora_up.weight"}]),
        ("musubi_tuner.networks.lora_wan", {"unknown": "1"}, ["unet"], [{"lora_down.weight", "lora_up.weight"}]),
        ("networks.lokr", {"factor": "4"}, ["unet"], [{"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}]),
        ("lycoris.kohya", {"preset": "attn-mlp", "algo": "lora"}, None, [{"lora_down.weight", "lora_up.weight"}]),
    ],
)  # fmt: skip
def test_groups_of_networks(musubi, module, kwargs, descriptions, endings):
    made = musubi.ask("musubi_groups", module, **kwargs)
    if module != "lycoris.kohya":
        assert made["pair"]
        assert "create_arch_network" in made["creators"]
        assert made["descriptions"] == descriptions
        found = [{name.partition(".")[2] for name in group["names"]} for group in made["groups"]]
        assert found == endings
        assert [group["lr"] for group in made["groups"]] == [1e-3, 4e-3][: len(endings)]
        assert all(name.startswith("lora_unet_blocks_0_") for name in made["saved"] if "blocks_0" in name)
        assert len({name.partition(".")[0] for name in made["saved"]}) == 20  # ten linear layers in each of two blocks
    else:
        assert "create_arch_network" not in made["creators"]  # hence the call of create_network
        assert made["pair"]
        assert made["descriptions"] is None or len(made["descriptions"]) != len(made["groups"]) or made["descriptions"]


@pytest.mark.slow
def test_a_network_of_weights_comes_alone_and_is_merged(musubi):
    for module in ("networks.lora_wan", "hina_kohya.lycoris"):
        assert musubi.ask("musubi_merged", module) == {"alone": True, "acts": True, "same": True}


def test_timesteps_are_counted_from_one(musubi):
    made = musubi.ask("musubi_noise")
    assert made["timesteps"] == pytest.approx([1000 * share + 1 for share in made["shares"]], abs=0.01)


def test_logs(musubi):
    assert musubi.ask("musubi_logs", [0.1, 0.2], ["unet", "unet plus"]) == {
        "loss/current": 1.0, "loss/average": 1.0, "lr/unet": 0.1, "lr/unet plus": 0.2,
    }  # fmt: skip
    assert set(musubi.ask("musubi_logs", [0.1, 0.2, 0.3], None)) >= {"lr/group0", "lr/group1", "lr/group2"}
    assert failed(musubi.ask("musubi_logs", [0.1, 0.2], ["unet"]), "IndexError")


def test_config_files(musubi, tmp_path):
    toml = 'seed = 1\n[one]\nnetwork_dim = 8\n[two]\noptimizer_args = ["a=1"]\n'
    args = musubi.ask("musubi_config", str(tmp_path), toml, "--seed", "2")
    assert (args["seed"], args["network_dim"], args["optimizer_args"]) == (2, 8, ["a=1"])


# This package in a training

WAYS = {
    "hina_kohya.lycoris": ({"network": "hina_kohya.lycoris", "network_args": LOKR}, "lokr"),
    "hina_kohya.network": (NATIVE, "lora"),
    "hina_kohya.network of LyCORIS": (
        {"network": "hina_kohya.network", "network_args": ("inner=lycoris.kohya", *LOKR)}, "lokr"),
    "-m hina_kohya.launch": ({"network": "networks.lora_wan", "hooks": True}, "lora"),
}  # fmt: skip


def counted(report, algorithm):
    """(modules, pairs) of the line that the first step logs."""
    modules, pairs = re.search(rf"{algorithm} (\d+) modules, (\d+) (?:Kronecker )?pairs", report.log).groups()
    assert "0 regular, 0 unnamed" in report.log
    assert 0 < int(modules) <= int(pairs)


@pytest.mark.parametrize("way", WAYS)
def test_short_name_and_forgiving_arguments(musubi, way):
    request, algorithm = WAYS[way]
    report = musubi.train(optimizer="hinaadamw", optimizer_args=FORGIVING, steps=2, **request)
    assert report.meta["ss_optimizer"] == f"{OURS}(use_cautious=True,betas=(0.9, 0.99),state=bf16)"
    assert len(report.losses) == 2
    counted(report, algorithm)


def test_short_name_without_a_way_in(musubi):
    report = musubi.train(network="networks.lora_wan", optimizer="HinaAdamW", steps=1, rc=1)
    assert "has no attribute 'HinaAdamW'" in report.log


@pytest.mark.slow
def test_a_name_of_sd_scripts_that_is_none_here(musubi):
    report = musubi.train(**NATIVE, optimizer="Prodigy", steps=1, rc=1)
    assert "musubi-tuner has no optimizer 'Prodigy'; write prodigyopt.Prodigy" in report.log


@pytest.mark.slow
def test_the_original_documents_line(musubi):
    words = ("use_alora=True", "dynamic_weight_decay=True", "wd_transition_steps=1000")
    report = musubi.train(
        network="networks.lokr", network_args=("factor=4",), optimizer="HinaAdamW", optimizer_args=words, steps=2,
        hooks=True,
    )  # fmt: skip
    assert report.meta["ss_optimizer"] == f"{OURS}({','.join(words)})"
    counted(report, "lokr")


@pytest.mark.slow
@pytest.mark.parametrize("network", [NATIVE, {"network": "hina_kohya.lycoris", "network_args": ("algo=loha",)}],
                         ids=["native", "lycoris"])  # fmt: skip
def test_groups_by_role_have_names_rates_and_curves(musubi, network):
    plus = ("lora_up.weight", "hada_w2_a")
    args = (*network["network_args"], "weight_decay=0.1", "loraplus_lr_ratio=16", "wd_exclude=*blocks_1_*")
    report = musubi.train(network=network["network"], network_args=args, optimizer=PROBE, steps=2)
    # networks.lora_wan has LoRA+ of its own, and says so first
    said = ["unet", "unet no decay", "unet plus", "unet plus no decay"]
    logged = {tag.removeprefix("lr/"): values for tag, values in report.scalars.items() if tag.startswith("lr/")}
    assert sorted(logged) == said
    assert len(report.groups) == 4
    assert [group["form"] for group in report.groups] == ["named"] * 4
    found = {}
    for group in report.groups:
        (fast,) = {name.partition(".")[2] in plus for name in group["param_names"]}
        (still,) = {"_blocks_1_" in name for name in group["param_names"]}
        assert group["lr"] == pytest.approx(16e-3 if fast else 1e-3)
        assert group["weight_decay"] == (0.0 if still else 0.1)
        found["unet" + " plus" * fast + " no decay" * still] = group["lr"]
    assert {name: values[0] for name, values in logged.items()} == pytest.approx(found)
    names = [name for group in report.groups for name in group["param_names"]]
    assert set(names) == {name for name in report.tensors if not name.endswith("alpha")}


@pytest.mark.slow
def test_decay_alone_is_described_too(musubi):
    args = ("algo=lora", "dora_wd=True", "weight_decay=0.1")
    report = musubi.train(network="hina_kohya.lycoris", network_args=args, optimizer=PROBE, steps=2)
    assert {tag for tag in report.scalars if tag.startswith("lr/")} == {"lr/unet", "lr/unet no decay"}
    decays, still = report.groups
    assert (decays["weight_decay"], still["weight_decay"]) == (0.1, 0.0)
    assert {name.rpartition(".")[2] for name in still["param_names"]} == {"dora_scale"}


def test_without_options_every_bit_is_the_same(musubi):
    chosen = {"network": "networks.lora_wan", "optimizer": "AdamW"}
    runs = [musubi.train(**chosen, steps=5, hooks=hooks) for hooks in (False, True)]
    assert runs[0].losses == runs[1].losses
    assert runs[0].bits == runs[1].bits
    assert runs[0].bits != musubi.train(**chosen, steps=1).bits


@pytest.mark.slow
def test_resuming_restores_the_optimizer_exactly(musubi):
    chosen = {**NATIVE, "optimizer_args": ("state='bf16'",)}
    first = musubi.train(**chosen, optimizer="HinaAdamW", steps=3, extra=("--save_state",))
    again = musubi.train(
        **chosen, optimizer="tests.support.resume_probe.HinaAdamW", steps=2,
        extra=("--save_state", "--resume", str(first.out / "lora-state")),
    )  # fmt: skip
    saved, loaded, after = (
        torch.load(path, weights_only=True)
        for path in (first.out / "lora-state" / "optimizer.bin", again.out / "loaded.pt",
                     again.out / "lora-state" / "optimizer.bin")
    )  # fmt: skip
    assert saved["state"].keys() == loaded["state"].keys() == after["state"].keys() != set()
    for key, entry in saved["state"].items():
        assert entry.keys() == loaded["state"][key].keys()
        for name, value in entry.items():
            one, other = torch.as_tensor(value), torch.as_tensor(loaded["state"][key][name])
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        assert (int(entry["step"]), int(after["state"][key]["step"])) == (3, 5)


@pytest.mark.slow
def test_adlrns_has_every_sample_in_the_bin_of_its_noise(musubi, tmp_path):
    args = ("bins=4", "budget=2", "warmup=3", "refresh_every=3")
    report = musubi.train(network="tests.support.noise_probe", network_args=(*args, "preset=attn-mlp"), steps=8)
    lines = [json.loads(line) for line in (report.out / "noise.jsonl").read_text().splitlines()]
    measured, read = ([share for line in lines for share in line.get(kind, [])] for kind in ("measured", "read"))
    assert read == pytest.approx(measured, abs=0.02)
    bins = [each for line in lines for each in line.get("bins", [])]
    assert bins == [min(int(share * 4), 3) for share in read]
    assert len(set(bins)) > 1
    assert "is not known here" not in report.log
    assert "adlrns step 3: cost" in report.log
    plain = tmp_path / "plain.safetensors"
    assert main(["adlrns", "export", str(report.weights), "--rank", "2", "-o", str(plain)]) == 0
    extra = ("--network_weights", str(plain), "--network_dim", "2", "--network_alpha", "0.5")
    again = musubi.train(network="networks.lora_wan", optimizer="SGD", lr="1e-30", steps=1, extra=extra)
    exported = load_file(plain)
    assert set(again.tensors) <= set(exported)
    for name, tensor in again.tensors.items():
        torch.testing.assert_close(tensor, exported[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_base_weights(musubi, tmp_path):
    """Merged into the model, a file of LyCORIS does what it does as the network."""
    chosen = {"network": "hina_kohya.lycoris", "network_args": LOKR}
    first = musubi.train(**chosen, optimizer="AdamW", steps=3, lr="1e-2")
    nothing = str(tmp_path / "nothing.safetensors")
    save_file({name: tensor * ("alpha" in name) for name, tensor in first.tensors.items()}, nothing)
    losses = [
        musubi.train(**chosen, optimizer="SGD", lr="1e-30", steps=1, extra=("--base_weights", base, *more)).losses[0]
        for base, more in (
            (str(first.weights), ()), (nothing, ("--network_weights", str(first.weights))), (nothing, ()))
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] != losses[2]


def test_base_weights_where_nothing_says_which_network(musubi, tmp_path):
    report = musubi.train(**NATIVE, steps=1, extra=("--base_weights", str(written(tmp_path))), rc=1)
    assert "With --base_weights trainers pass none: start with `hina-kohya launch`" in report.log


def written(folder):
    save_file({"lora_unet_a.alpha": torch.ones(())}, folder / "file.safetensors")
    return folder / "file.safetensors"


# A trainer that passes the hooks by

OTHER = """import torch


def make_optimizer(args, groups):
    return "torch.optim.AdamW", "", torch.optim.AdamW(groups, lr=args.learning_rate), lambda: None, lambda: None
"""
PLANTED = {
    "another get_optimizer": (
        r"self\.get_optimizer\(\s*args, (\w+)\s*\)",
        r"__import__('musubi_tuner.made_here').made_here.make_optimizer(args, \1)",
        r"AdamW was made by \S+made_here\.py: make_optimizer \(called by \S+trainer_base\.py: ",
    ),
    "groups of one's own": (
        r"self\.get_optimizer\(\s*args, \w+\s*\)",
        r"self.get_optimizer(args, list(network.parameters()))",
        r"trainer_base\.py: \w+.* took the parameters of \w+ otherwise than by prepare_optimizer_params",
    ),
    "another call": (
        r"prepare_optimizer_params\(unet_lr=args\.learning_rate\)",
        r"prepare_optimizer_params(args.learning_rate)",
        r"asks \w+ for its param groups by prepare_optimizer_params\(0\.001\)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED)
def test_a_trainer_that_passes_the_hooks_by_stops(musubi, tmp_path, monkeypatch, fault):
    copy = shutil.copytree(musubi.home, tmp_path / "checkout", ignore=shutil.ignore_patterns(".git", "__pycache__"))
    monkeypatch.setattr(musubi.subject, "home", copy)
    source = copy / "src" if (copy / "src").is_dir() else copy
    script = source / "musubi_tuner" / "training" / "trainer_base.py"
    pattern, planted, said = PLANTED[fault]
    text, count = re.subn(pattern, planted, script.read_text(encoding="utf-8"))
    assert count == 1
    script.write_text(text, encoding="utf-8")
    (source / "musubi_tuner" / "made_here.py").write_text(OTHER)
    report = musubi.train(**NATIVE, optimizer="AdamW", steps=1, rc=1)
    assert re.search(said, report.log), report.log[-1500:]
    assert not report.weights.exists()
