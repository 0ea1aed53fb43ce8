"""What has to work in every trainer, tried in the real one: the columns of docs/trainers.md, by scripts/trainers.sh."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hina_kohya import patch
from hina_kohya.cli import main
from hina_kohya.patch.targets import SD_SCRIPTS
from tests.support import cached, runs
from tests.support.runs import OURS

FORGIVING = ("use_cautious=true,", "betas = (0.9,", "0.99)", "state=bf16")
LITERAL = ("use_cautious=True", "betas=(0.9,0.99)", "state='bf16'")  # the same, for classes that are not ours
RATES = ("--text_encoder_lr", "1e-4", "--unet_lr", "2e-4")
STAYS = {"optimizer": "SGD", "lr": "1e-30", "steps": 1}


def rates(subject):
    return () if subject.is_musubi else RATES


def counted(log, algorithm):
    """(modules, pairs) by the line of the first step, in which every parameter has a role."""
    log = runs.joined(log)
    modules, pairs = re.search(rf"{algorithm} (\d+) modules, (\d+) (?:Kronecker )?pairs", log).groups()
    assert "0 regular, 0 unnamed" in log
    return int(modules), int(pairs)


def groups(report):
    """Of the optimizer's saved state."""
    return torch.load(report.out / "lora-state" / "optimizer.bin", weights_only=True)["param_groups"]


def split(subject, report, ending):
    """Groups of the optimizer by the end of their description, each logged at its own rate and nothing else logged.

    ending: of the description of a group of such parameters
    """
    by_ending = {}
    for group in groups(report):
        (end,) = {ending(name) for name in group["param_names"]}
        by_ending.setdefault(end, []).append(group)
    tags = [tag for tag in report.scalars if tag.startswith("lr/")]
    if subject.logs_twice:  # all but the first by number, too, and that one as lr/textencoder
        again = {f"lr/group{i}" for i in range(len(tags))} | ({"lr/textencoder"} if "" not in by_ending else set())
        tags = [tag for tag in tags if tag not in again]
    ends = sorted(by_ending, key=len, reverse=True)
    logged = [(next((end for end in ends if tag.endswith(end)), tag), f"{report.scalars[tag][0]:.5g}") for tag in tags]
    expected = [(end, f"{group['lr']:.5g}") for end, found in by_ending.items() for group in found]
    assert set(logged) == set(expected)
    # networks.lora_sd3 calls the second text encoder the first, too
    assert len(logged) == len(expected) or subject.kind == "sd3"
    return by_ending


def test_native_network_and_resume(subject):
    """hina_kohya.network: short name, arguments as people write them, groups by role; the state comes back whole."""
    args = (f"inner={subject.network}", "weight_decay=0.1", "wd_roles=lora_up", "loraplus_lr_ratio=16")
    chosen = {"network": "hina_kohya.network", "network_args": args}
    extra = (*rates(subject), "--save_state")
    first = subject.train(**chosen, optimizer="hinaadamw", optimizer_args=FORGIVING, steps=3, extra=extra)
    assert first.meta["ss_optimizer"].startswith(OURS)
    modules, pairs = counted(first.log, "lora")
    assert modules == pairs > 0
    by = split(subject, first, lambda name: " plus" if "lora_up" in name else " no decay")
    assert len(by[" plus"]) == len(by[" no decay"])
    for fast, slow in zip(by[" plus"], by[" no decay"], strict=True):
        assert fast["lr"] == pytest.approx(16 * slow["lr"])
        assert (fast["weight_decay"], slow["weight_decay"]) == (0.1, 0.0)
    extra += ("--resume", str(first.out / "lora-state"))
    extra += () if subject.is_musubi else ("--skip_until_initial_step", "--max_train_steps", "5")  # it counts from 0
    probe = "tests.support.resume_probe.HinaAdamW"
    again = subject.train(**chosen, optimizer=probe, optimizer_args=LITERAL, steps=2, extra=extra)
    saved = torch.load(first.out / "lora-state" / "optimizer.bin", weights_only=True)
    same(saved, torch.load(again.out / "loaded.pt", weights_only=True))
    after = torch.load(again.out / "lora-state" / "optimizer.bin", weights_only=True)
    steps = [[int(state["state"][key]["step"]) for key in saved["state"]] for state in (saved, after)]
    assert set(steps[0]) in ({3}, {0, 3})  # some of SDXL's second text encoder never gets a gradient
    assert steps[1] == [each and each + 2 for each in steps[0]]


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
    if isinstance(one, (dict, list, tuple)):
        for key in one if isinstance(one, dict) else range(len(one)):
            same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def test_a_rate_that_is_found(subject):
    """HinaAuto at learning rate 1: the rate that it found is logged as Prodigy's is, is saved, and comes back."""
    chosen = {"network": "hina_kohya.network", "network_args": (f"inner={subject.network}",), "optimizer": "HinaAuto"}
    first = subject.train(**chosen, lr="1", steps=3, extra=("--save_state",))
    assert re.search(r"finds the learning rate, from 0.0003", first.log)
    tags = [tag for tag in first.scalars if tag.startswith("lr/d*lr/")]
    assert tags
    assert all(value >= 3e-4 * (1 - 1e-6) for tag in tags for value in first.scalars[tag])
    saved = torch.load(first.out / "lora-state" / "optimizer.bin", weights_only=True)
    rates_of = [entry["auto_rate.numbers"][..., 0].max().item() for entry in saved["state"].values()]
    extra = ("--save_state", "--resume", str(first.out / "lora-state"))
    extra += () if subject.is_musubi else ("--skip_until_initial_step", "--max_train_steps", "5")
    again = subject.train(**chosen, lr="1", steps=2, extra=extra)
    assert again.scalars[tags[0]][0] >= max(rates_of) * (1 - 1e-6)


def test_scalars(subject):
    """hina/... in TensorBoard, for HinaAdamW and for torch's AdamW; the file is the same without them, by the bit."""
    chosen = {"network": "hina_kohya.network", "steps": 3, "extra": rates(subject)}
    args = (f"inner={subject.network}", "loraplus_lr_ratio=4")
    report = subject.train(**chosen, network_args=(*args, "log_every=1"), optimizer="HinaAdamW")
    kinds = {}
    for tag in report.scalars:
        if tag.startswith("hina/"):
            kinds.setdefault(tag.split("/")[1], set()).add(tag.rpartition("/")[2])
            assert len(report.scalars[tag]) == 2  # of the second step and the third
    assert set(kinds) >= {"update_ratio", "weight_norm", "effective_lr", "skipped"}
    assert kinds["effective_lr"] <= {tag.removeprefix("lr/") for tag in report.scalars if tag.startswith("lr/")}
    assert kinds["update_ratio"] <= kinds["weight_norm"]
    assert len(kinds["weight_norm"]) > 1  # blocks of the model
    ratios = [report.scalars[f"hina/update_ratio/{block}"] for block in kinds["update_ratio"]]
    assert all(0 <= value < 1 for values in ratios for value in values)
    without = subject.train(**chosen, network_args=(*args, "log_every=0"), optimizer="HinaAdamW")
    assert not any(tag.startswith("hina/") for tag in without.scalars)
    assert without.bits == report.bits
    plain = subject.train(**chosen, network_args=(*args, "log_every=1"), optimizer="AdamW")
    found = {tag.split("/")[1] for tag in plain.scalars if tag.startswith("hina/")}
    assert found == {"update_ratio", "weight_norm"}


@pytest.mark.only("sd", "sdxl", "flux", "zimage")
def test_a_small_alpha(subject):
    """network_alpha is 1 by default, and network_dim 4 here: LoRA-Muon's rate is over the root of a quarter."""
    args = (f"inner={subject.network}", "log_every=1")
    report = subject.train(network="hina_kohya.network", network_args=args, optimizer="HinaAdamW", steps=3)
    effective = [tag for tag in report.scalars if tag.startswith("hina/effective_lr/")]
    assert effective
    for tag in effective:
        plain = report.scalars[f"lr/{tag.rpartition('/')[2]}"][-1]
        assert report.scalars[tag][-1] == pytest.approx(2 * plain, rel=1e-4)


@pytest.mark.only("sd", "sdxl", "flux", "zimage")
def test_best_and_early_end(subject, tmp_path):
    """keep_best and stop_after by the trainer's validation or ours, of fixed noise and order; a resume knows it."""
    args, more = (f"inner={subject.network}", "log_every=0", "keep_best=true"), ()
    if subject.is_musubi:
        training, held_out = cached.parts(tmp_path, subject.kind, is_double=False)
        args, split = (*args, f"held_out={held_out}"), ("--dataset_config", training)
        seldom, more = ("held_out_every=12",), ("held_out_every=1",)
    else:
        split, seldom = ("--validation_split", "0.25", "--validation_seed", "1", "--max_data_loader_n_workers", "1"), ()
    chosen = {"network": "hina_kohya.network", "optimizer": "AdamW"}
    still = subject.train(**chosen, network_args=(*args, *seldom), lr="1e-30", steps=24, extra=split)
    assert len(still.scalars["loss/held_out"]) == 2
    assert len(set(still.scalars["loss/held_out"])) == 1
    extra = (*split, *(() if subject.is_musubi else ("--validate_every_n_steps", "1")), "--save_state")
    rc = 3 if subject.is_musubi else 0  # the harness's word for fewer steps than it asked for
    early = {"network_args": (*args, *more, "stop_after=3"), "lr": "1", "steps": 48}
    report = subject.train(rc, **chosen, **early, extra=extra)
    losses = report.scalars["loss/held_out"]
    lowest = losses.index(min(losses))
    assert (len(losses), len(report.losses)) == (lowest + 4, lowest + 4)
    assert int(report.meta["ss_steps"]) == lowest + 4
    assert report.scalars["loss/best"] == [loss for n, loss in enumerate(losses) if loss < min(losses[:n], default=1e9)]
    best = report.out / "lora-best.safetensors"
    with safe_open(best, "pt") as file:
        metadata = file.metadata()
    assert int(metadata["ss_steps"]) == lowest + 1
    assert metadata["ss_network_module"] == report.meta["ss_network_module"]
    assert {name: tensor.shape for name, tensor in load_file(best).items()} == {
        name: tensor.shape for name, tensor in report.tensors.items()
    }
    state = json.loads((report.out / "lora-state" / "hina_best.json").read_text())
    assert state == {**json.loads(metadata["hina_best"]), "misses": 3}
    resume = ("--resume", str(report.out / "lora-state"))
    resume += () if subject.is_musubi else ("--skip_until_initial_step", "--max_train_steps", "48")
    late = {"network_args": (*args, *more, "stop_after=4"), "lr": "1", "steps": 1}
    again = subject.train(**chosen, **late, extra=(*extra, *resume))
    assert len(again.scalars["loss/held_out"]) == 1 or min(again.scalars["loss/held_out"]) < min(losses)


def averaged(report):
    """(tensors, steps) of the average beside a file."""
    path = report.out / "lora-ema.safetensors"
    with safe_open(path, "pt") as file:
        done = json.loads(file.metadata()["hina_average"])["done"]
    return load_file(path), int(re.search(r"average of (\d+) steps", done)[1])


def test_averages(subject):
    """ema=0.2 of a LoKr and of the native network: a second file, the first by the bit as without; resume goes on."""
    lokr = {"network": "hina_kohya.lycoris", "network_args": (*LOKR, "ema=0.2"), "optimizer": "AdamW", "steps": 3}
    average, steps = averaged(first := subject.train(**lokr))
    assert steps == 3
    assert average.keys() == first.tensors.keys()
    args = (f"inner={subject.network}", "ema=0.2")
    chosen = {"network": "hina_kohya.network", "optimizer": "HinaAdamW"}
    extra = (*rates(subject), "--save_state")
    first = subject.train(**chosen, network_args=args, steps=3, extra=extra)
    without = subject.train(**chosen, network_args=args[:1], steps=3, extra=extra)
    assert first.bits == without.bits
    average, steps = averaged(first)
    assert steps == 3
    assert any(not torch.equal(average[name], tensor) for name, tensor in first.tensors.items())
    saved = torch.load(first.out / "lora-state" / "optimizer.bin", weights_only=True)["hina_average"]
    assert len(saved["values"]) == len(list(average)) - sum(name.endswith("alpha") for name in average)
    extra += ("--resume", str(first.out / "lora-state"))
    extra += () if subject.is_musubi else ("--skip_until_initial_step", "--max_train_steps", "5")  # it counts from 0
    again = subject.train(**chosen, network_args=args, steps=2, extra=extra)
    assert averaged(again)[1] == 5


LOKR = ("algo=lokr", "preset=attn-mlp", "factor=4")


def test_lokr(subject, tmp_path):
    """hina_kohya.lycoris; its plain file goes on, tensor by tensor."""
    args = (*LOKR, "weight_decay=0.1", "wd_exclude=*lokr_w1", "loraplus_lr_ratio=16")
    chosen = {"network": "hina_kohya.lycoris", "network_args": args}
    first = subject.train(**chosen, optimizer="HinaAdamW", steps=3, extra=(*rates(subject), "--save_state"))
    assert first.meta["ss_optimizer"].startswith(OURS)
    modules, pairs = counted(first.log, "lokr")
    assert modules <= pairs
    plus = ("lokr_w2", "lokr_w2_b")
    by = split(subject, first, lambda name: " plus" if name.endswith(plus) else " no decay" * name.endswith("lokr_w1"))
    for end, part in by.items():
        assert {group["weight_decay"] for group in part} == {0.0 if end == " no decay" else 0.1}
    again = subject.train(**{**chosen, **STAYS}, extra=("--network_weights", str(first.weights)))
    assert_loaded(first.tensors, again.tensors)
    if subject.kind == "wan":  # merged into the model, a file does what it does as the network; one function for all
        nothing = str(tmp_path / "nothing.safetensors")
        save_file({name: tensor * ("alpha" in name) for name, tensor in first.tensors.items()}, nothing)
        losses = [
            subject.train(**{**chosen, **STAYS}, extra=("--base_weights", base, *more)).losses[0]
            for base, more in (
                (str(first.weights), ()), (nothing, ("--network_weights", str(first.weights))), (nothing, ()))
        ]  # fmt: skip
        assert losses[0] == pytest.approx(losses[1], rel=2e-3)
        assert losses[0] != losses[2]


def assert_loaded(expected, tensors):
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            tensors[name], tensor, rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_launcher_with_loha(subject):
    """-m hina_kohya.launch, and lycoris.kohya as it is."""
    args = ("algo=loha", "preset=attn-mlp")
    report = subject.train(network_args=args, optimizer="HinaAdamW", optimizer_args=FORGIVING, steps=3, hooks=True)
    assert report.meta["ss_optimizer"].startswith(OURS)
    assert report.meta["ss_network_module"] == "lycoris.kohya"
    counted(report.log, "loha")


def test_hina_kohya_launch_with_dora(subject):
    """`hina-kohya launch`, in bf16."""
    args = ("algo=lora", "preset=attn-mlp", "dora_wd=True", "weight_decay=0.1")
    # HunyuanImage's ByT5 adapter gives a bf16 LayerNorm float32, which torch takes on a GPU only
    half = () if subject.kind == "hunyuan_image" else ("--mixed_precision", "bf16")
    extra = (*rates(subject), *half, "--save_state")
    report = subject.train(network_args=args, optimizer="HinaAdamW", steps=3, launch="hina-kohya", extra=extra)
    assert report.meta["ss_optimizer"].startswith(OURS)
    counted(report.log, "lora")
    by = split(subject, report, lambda name: " no decay" * name.endswith("dora_scale"))
    assert {end: {group["weight_decay"] for group in part} for end, part in by.items()} == {
        " no decay": {0.0},
        "": {0.1},
    }


@pytest.mark.only("sd", "sdxl", "flux", "sd3", "anima", "lumina", "hunyuan_image")
def test_patch(subject):
    """`hina-kohya patch apply` on a copy of the checkout."""
    copy = subject.in_copy()
    patch.apply(patch.inspect(SD_SCRIPTS, copy))
    report = subject.train(network_args=LOKR, optimizer="HinaAdamW", optimizer_args=FORGIVING, steps=2)
    assert report.meta["ss_optimizer"].startswith(OURS)
    counted(report.log, "lokr")


def ranks(tensors):
    return {name: len(each) for name, each in tensors.items() if name.endswith("lora_down.weight")}


def test_adlrns_chooses_ranks(subject):
    """Resumed before the choice and after it; rows and state shrink; the file goes on in the native network."""
    args = ("budget=2", "warmup=4", "probe_every=1", "preset=attn-mlp")
    chosen = {"network": "hina_kohya.adlrns", "network_args": args, "optimizer": "HinaAdamW"}

    def resumed(steps, from_):
        extra = ("--save_state", "--resume", str(from_.out / "lora-state"))
        end = 3 + steps if from_ is first else 5 + steps
        extra += () if subject.is_musubi else ("--skip_until_initial_step", "--max_train_steps", str(end))
        return subject.train(**chosen, steps=steps, extra=extra)

    first = subject.train(**chosen, steps=3, extra=("--save_state",))
    assert "adlrns: saved in the warmup" in first.log
    assert set(ranks(first.tensors).values()) == {4}
    second = resumed(2, first)
    assert "adlrns step 4: " in second.log
    kept = ranks(second.tensors)
    assert sum(kept.values()) < 4 * len(kept)
    assert {name.rpartition(".")[2] for name in second.tensors} <= {"weight", "alpha"}
    state = torch.load(second.out / "lora-state" / "optimizer.bin", weights_only=True)["state"]
    large = [each for entry in state.values() for each in entry.values() if isinstance(each, torch.Tensor)]
    assert sum(each.numel() for each in large) < 2.5 * sum(each.numel() for each in second.tensors.values())
    third = resumed(1, second)
    assert "adlrns step" not in third.log
    assert ranks(third.tensors) == kept
    # musubi-tuner's --dim_from_weights is a switch that is read as a path, and its own network has one rank
    if not subject.is_musubi:
        extra = ("--network_weights", str(third.weights), "--dim_from_weights")
        again = subject.train(**STAYS, network=subject.network, hooks=True, extra=extra)
        theirs = {name: tensor for name, tensor in third.tensors.items() if name in again.tensors}
        assert len(theirs) == len(again.tensors) > 0
        assert_loaded(theirs, again.tensors)


def test_adlrns_and_its_export(subject, tmp_path):
    """Every sample is in the bin of its noise, measured by itself; a plain file goes on in the native network."""
    args = ("bins=4", "budget=2", "warmup=3", "refresh_every=3", "preset=attn-mlp")
    report = subject.train(network="tests.support.noise_probe", network_args=args, optimizer="HinaAdamW", steps=8)
    lines = [json.loads(line) for line in (report.out / "noise.jsonl").read_text().splitlines()]
    measured = [share for line in lines for share in line.get("measured", [])]
    read = [share for line in lines for share in line.get("read", [])]
    bins = [each for line in lines for each in line.get("bins", [])]
    assert read == pytest.approx(measured, abs=0.02)
    assert len(set(bins)) > 1
    assert all(abs(share * 4 - (each + 0.5)) < 0.5 + 0.1 for share, each in zip(measured, bins, strict=True))
    assert "is not known here" not in report.log
    assert "adlrns step 3: cost" in report.log
    assert {len(tensor) for name, tensor in report.tensors.items() if name.endswith("adlrns_kept")} <= {1, 4}
    plain = tmp_path / "plain.safetensors"
    assert main(["adlrns", "export", str(report.weights), "--rank", "2", "-o", str(plain)]) == 0
    # musubi-tuner's --dim_from_weights is a switch that is read as a path
    how = ("--network_dim", "2", "--network_alpha", "0.5") if subject.is_musubi else ("--dim_from_weights",)
    extra = ("--network_weights", str(plain), *how)
    again = subject.train(**STAYS, network=subject.network, hooks=True, extra=extra)
    exported = load_file(plain)
    theirs = {name: tensor for name, tensor in exported.items() if name in again.tensors}
    assert len(theirs) == len(again.tensors) > 0
    assert_loaded(theirs, again.tensors)


@pytest.mark.only("sdxl", "anima", "zimage", "wan", "qwen_image")
def test_networks_lokr_and_loha(subject):
    """The original document's line; native since sd-scripts 0.11."""
    if subject.checkout.family == "sd-scripts" and not (subject.checkout.home / "networks" / "lokr.py").exists():
        pytest.skip("no networks.lokr before 0.11")
    words = ("use_alora=True", "dynamic_weight_decay=True", "wd_transition_steps=1000")
    report = subject.train(
        network="networks.lokr",
        network_args=("factor=4",),
        optimizer="HinaAdamW",
        optimizer_args=words,
        steps=3,
        hooks=True,
    )
    assert report.meta["ss_optimizer"].endswith(f"({','.join(words)})")
    modules, pairs = counted(report.log, "lokr")
    assert modules <= pairs
    args = ("inner=networks.loha", "loraplus_lr_ratio=16")
    report = subject.train(
        network="hina_kohya.network",
        network_args=args,
        optimizer="HinaAdamW",
        steps=3,
        extra=(*rates(subject), "--save_state"),
    )
    counted(report.log, "loha")
    by = split(subject, report, lambda name: " plus" * name.endswith("hada_w2_a"))
    assert by[" plus"][0]["lr"] == pytest.approx(16 * by[""][0]["lr"])


@pytest.mark.only("sd", "sd3", "anima", "zimage")
def test_presets(subject):
    """Our presets of LyCORIS take the layers that the trainer's own network takes."""
    preset = {"sd": "sd15", "sd3": "sd35"}.get(subject.kind, subject.kind)
    extra = ("--network_train_unet_only",) if subject.kind == "sd3" else ()
    layers = [
        {name.partition(".")[0] for name in subject.train(**how, steps=1, extra=extra).tensors}
        for how in (
            {"network": subject.network, "hooks": True},
            {"network": "hina_kohya.lycoris", "network_args": ("algo=loha", f"preset={preset}")},
        )
    ]
    assert layers[0] == layers[1]


def test_calibrated_resize(subject):
    """By the last steps of the training, and by `--calibrate` with the command line of the run, as a script has it."""
    args = (f"inner={subject.network}", "calibrate_steps=2")
    report = subject.train(network="hina_kohya.network", network_args=args, steps=4, lr="1e-2")
    script, small = report.out / "run.sh", report.out / "small.safetensors"
    script.write_text((report.out / "log.txt").read_text(errors="replace").partition("\n")[0])
    before = report.weights.read_bytes()
    words = ["resize", report.weights, "--size", "50%", "-o", small]
    log = subject.real.hina_kohya(words)
    assert "by 2 samples of data" in log
    assert "which lies beside it" in log
    assert small.stat().st_size <= len(before) / 2
    words += ["--calibrate", script, "--calibrate-steps", "3"]
    log = subject.real.hina_kohya([*words, "--sd-scripts", subject.checkout.home])
    assert f"3 steps of {subject.real.kind.script}" in log
    assert "by 3 samples of data" in log
    assert report.weights.read_bytes() == before
    assert small.stat().st_size <= len(before) / 2
    metric = load_file(report.weights.with_name("lora.metric.safetensors"))
    acting = {name.partition(".")[0] for name, tensor in report.tensors.items() if "lora_up" in name and tensor.any()}
    assert acting == {
        name.rpartition(".")[0] for name, tensor in metric.items() if name.endswith(".up") and tensor.any()
    }
