"""Every shipped config, and README's, in its trainer: paths and sizes are the harness's, all else is as it stands."""

import re
from pathlib import Path

import pytest
import toml

from tests.support import runs
from tests.support.runs import OURS

FOLDER = runs.ROOT / "configs" / "training"
KINDS = {
    "sd15": "sd", "sdxl": "sdxl", "sd35": "sd3", "flux1": "flux", "lumina2": "lumina", "anima": "anima",
    "wan22": "wan", "qwenimage": "qwen_image", "zimage": "zimage",
}  # fmt: skip
CONFIGS = {kind: sorted(FOLDER.glob(f"{model}_*.toml")) for model, kind in KINDS.items()}
LINES = {
    "lora": r"lora (\d+) modules, (\d+) pairs", "dora": r"lora (\d+) modules, (\d+) pairs",
    "adlrns": r"lora (\d+) modules, (\d+) pairs", "lokr": r"lokr (\d+) modules, (\d+) Kronecker pairs",
    "loha": r"loha (\d+) modules, (\d+) pairs",
}  # fmt: skip


def overrides(subject, config):
    """The command line: data of the harness, small pictures, no warm-up, and what a CPU or a tiny model has not."""
    given = {key: value for section in config.values() for key, value in section.items()}
    words = ["--lr_warmup_steps", "1", "--max_data_loader_n_workers", "1", "--mixed_precision", "bf16"]
    if subject.is_musubi:
        words += ["--dataset_config", runs.HARNESS_DIR / "assets" / "dit" / subject.kind / "dataset.toml"]
    else:
        words += ["--dataset_config", runs.HARNESS_DIR / "assets" / "dataset.toml", "--min_bucket_reso", "64"]
    if "blocks_to_swap" in given:  # of the two blocks here none can wait elsewhere
        words += ["--blocks_to_swap", "0"]
    if subject.kind == "wan":
        words += ["--task", "t2v-1.3B"]
    return words


@pytest.mark.only(*CONFIGS)
def test_shipped_configs(subject):
    assert CONFIGS[subject.kind]
    for path in CONFIGS[subject.kind]:
        report = subject.train_config(path, 3, *overrides(subject, toml.load(path)))
        assert report.meta["ss_optimizer"].startswith(OURS), path
        algorithm = path.stem.rpartition("_")[2]
        log = runs.joined(report.log)
        modules, pairs = map(int, re.search(LINES[algorithm], log).groups())
        assert modules <= pairs, path
        assert "0 regular, 0 unnamed" in log, path
        ends = {tag.rpartition(" ")[2] for tag in report.scalars if tag.startswith("lr/")}
        assert ("decay" in ends) == (algorithm == "dora"), path


@pytest.mark.only("sd")
def test_readme(subject, tmp_path):
    """The TOML of README as it is printed."""
    blocks = re.findall(r"```toml\n(.*?)```", (runs.ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (printed,) = (block for block in blocks if "network_module" in block)
    path = Path(tmp_path, "readme.toml")
    path.write_text(printed, encoding="utf-8")
    report = subject.train_config(path, 3)
    assert report.meta["ss_optimizer"] == f"{OURS}(use_tam=True,dynamic_weight_decay=True,wd_transition_steps=1000)"
    ends = {tag for tag in report.scalars if tag.startswith("lr/") and "group" not in tag}
    assert {"lr/textencoder", "lr/textencoder plus", "lr/unet", "lr/unet plus"} <= ends
