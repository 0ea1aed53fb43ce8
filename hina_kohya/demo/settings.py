"""All settings of `hina-kohya train`, declared once: command line, TOML keys, bounds and help come from here.

Names, defaults and the TOML form (sections are flattened one level, the command line wins) are those of sd-scripts'
train_network.py. Unlike there, unknown TOML keys and values of the wrong type are errors. Imports no torch.
"""

import argparse
import dataclasses as dc
import sys
import types
import typing
from pathlib import Path
from typing import Any

import toml

from .errors import UserError, did_you_mean

BASE_MODEL = Path(__file__).parent / "base_model"
SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
)

# Keys of real sd-scripts configurations that have no counterpart here, and what takes their place.
NOT_HERE = {
    "train_data_dir": "the images are scikit-learn's digits, see --digits and --num_images",
    "dataset_config": "the images are scikit-learn's digits, see --digits and --num_images",
    "resolution": "the images are 8 by 8",
    "max_train_epochs": "use max_train_steps",
    "save_every_n_epochs": "use save_every_n_steps",
    "vae": "the model works on pixels",
    "cache_latents": "the model works on pixels",
    "xformers": "nothing here is large enough to need it",
    "sdpa": "it is always used",
    "gradient_checkpointing": "nothing here is large enough to need it",
    "save_model_as": "always safetensors",
    "save_precision": "weights are saved as they are trained",
    "max_data_loader_n_workers": "the images are in memory",
    "persistent_data_loader_workers": "the images are in memory",
    "clip_skip": "the text model has two layers",
}


def option(default: Any, doc: str, *, low: float | None = None, high: float | None = None, choices: tuple = ()) -> Any:
    """One setting. Bounds are inclusive; a tuple stands for a list of these defaults."""
    metadata = {"doc": doc, "low": low, "high": high, "choices": choices}
    if isinstance(default, tuple):
        return dc.field(default_factory=lambda: list(default), metadata=metadata)
    return dc.field(default=default, metadata=metadata)


@dc.dataclass(frozen=True)
class Settings:
    config_file: str | None = option(None, "TOML file of settings; the command line wins over it")
    # What is trained on what.
    pretrained_model_name_or_path: str | None = option(None, "base model folder, if not the source checkout's")
    digits: list[int] = option((8, 9), "digits to teach (own option: stands for train_data_dir)", low=0, high=9)  # noqa: RUF009
    num_images: int | None = option(None, "use only so many images of each digit (own: few-shot runs)", low=1)
    caption_dropout_rate: float = option(0.0, "how often an image comes without its caption", low=0, high=1)
    validation_split: float = option(0.0, "share of the images that is held out and not trained on", low=0, high=1)
    validation_seed: int | None = option(None, "which images are held out; by default by seed", low=0, high=2**32 - 1)
    validate_every_n_steps: int = option(20, "steps from one held-out loss to the next", low=1)
    # The adapter.
    network_module: str = option("lycoris.kohya", "module with create_network")
    network_dim: int | None = option(None, "rank of the adapter", low=1)
    network_alpha: float = option(1.0, "alpha; the adapter's scale is alpha / dim", low=0)
    network_args: list[str] = option((), 'arguments of create_network, e.g. "algo=lokr" "factor=8"')  # noqa: RUF009
    network_weights: str | None = option(None, "adapter to continue from")
    dim_from_weights: bool = option(False, "take rank and algorithm from network_weights")
    network_dropout: float | None = option(None, "dropout of the adapter", low=0, high=1)
    network_train_unet_only: bool = option(False, "no adapter on the text encoder")
    network_train_text_encoder_only: bool = option(False, "no adapter on the U-Net")
    # The optimizer.
    optimizer_type: str = option("AdamW", "HinaAdamW, a torch.optim or bitsandbytes name, or pkg.module.Class")
    optimizer_args: list[str] = option((), 'arguments of the optimizer as Python literals, e.g. "betas=(0.9,0.99)"')  # noqa: RUF009
    learning_rate: float = option(2.0e-6, "learning rate where no other is given", low=0)
    unet_lr: float | None = option(None, "learning rate of the U-Net's adapter", low=0)
    text_encoder_lr: float | None = option(None, "learning rate of the text encoder's adapter", low=0)
    lr_scheduler: str = option("constant", "learning rate schedule", choices=SCHEDULERS)
    lr_warmup_steps: float = option(0, "warm-up in steps, or in parts of the run when below 1", low=0)
    lr_scheduler_num_cycles: int = option(1, "restarts of cosine_with_restarts", low=1)
    lr_scheduler_power: float = option(1.0, "power of polynomial", low=0)
    max_grad_norm: float = option(1.0, "clip the global gradient norm; 0 is off", low=0)
    # The run.
    max_train_steps: int = option(1600, "optimizer steps in all, those before --resume included", low=1)
    train_batch_size: int = option(1, "images a micro-step", low=1)
    gradient_accumulation_steps: int = option(1, "micro-steps an optimizer step", low=1)
    mixed_precision: str = option("no", "precision of forward and backward", choices=("no", "fp16", "bf16"))
    full_bf16: bool = option(False, "bf16 weights and gradients too; needs mixed_precision bf16")
    seed: int = option(42, "seed of everything", low=0, high=2**32 - 1)
    # What is written.
    output_dir: str = option("runs/train", "folder of all results")
    output_name: str = option("last", "name of the adapter file")
    save_every_n_steps: int | None = option(None, "write the adapter (and with save_state the state) on the way", low=1)
    save_state: bool = option(False, "write what --resume needs, with each saved adapter")
    resume: str | None = option(None, "state folder to go on from, exactly")
    logging_dir: str | None = option(None, "write TensorBoard scalars under this folder")
    judge: int = option(200, "images a verdict, before and after; 0: no sampling (own: quick runs)", low=0, high=10000)


FIELDS = {f.name: f for f in dc.fields(Settings)}


def default_of(field: dc.Field) -> Any:
    return field.default if field.default_factory is dc.MISSING else field.default_factory()


def kind(field: dc.Field) -> tuple[type, bool]:
    """(element type, is a list) of an annotation such as `int | None` or `list[str]`."""
    annotation = field.type
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0], True
    return typing.cast(type, annotation), False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message)


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hina-kohya train",
        description="Teach a small text-to-image model new digits through an adapter; options as in train_network.py.",
        epilog="example:\n  hina-kohya train --config_file configs/training/digits_lokr.toml --learning_rate 2e-3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, field in FIELDS.items():
        element, is_list = kind(field)
        default = default_of(field)
        shown = "" if default in (None, False, []) else f" (default: {default})"
        how: dict[str, Any] = {"help": field.metadata["doc"].replace("%", "%%") + shown}
        if element is bool:
            how["action"] = "store_true"
        else:
            how |= {"type": element, "nargs": "*" if is_list else None, "metavar": element.__name__.upper()}
        parser.add_argument(f"--{name}", **how)
    return parser


def read_toml(path: str) -> dict[str, Any]:
    """Settings of a TOML file, sections flattened one level."""
    file = Path(path if path.endswith(".toml") else path + ".toml")
    if not file.is_file():
        raise UserError(f"config_file {file} does not exist")
    try:
        tables = toml.loads(file.read_text(encoding="utf-8"))
    except toml.TomlDecodeError as exc:
        raise UserError(f"config_file {file} is not valid TOML: {exc}") from exc
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= value if isinstance(value, dict) else {key: value}
    for key in flat:
        if key in NOT_HERE:
            raise UserError(f"{file}: {key} is an sd-scripts option without use here ({NOT_HERE[key]}); remove it")
        if key not in FIELDS or key == "config_file":
            raise UserError(f"{file}: unknown key {key}{did_you_mean(key, list(FIELDS))}")
    return {key: _typed(key, value) for key, value in flat.items()}


def _typed(name: str, value: Any) -> Any:
    """Check a TOML value's type. Integers pass as floats; nothing else is converted."""
    element, is_list = kind(FIELDS[name])
    if name == "text_encoder_lr" and isinstance(value, list) and len(value) == 1:
        value = value[0]  # sd-scripts takes one a text encoder; there is one here
    if is_list:
        if not isinstance(value, list):
            raise UserError(f"{name} must be a list, got {value!r}; write {name} = [{toml_literal(value)}]")
        return [_element(name, element, v) for v in value]
    return _element(name, element, value)


def _element(name: str, element: type, value: Any) -> Any:
    if element is float and type(value) is int:
        return float(value)
    if type(value) is not element:
        raise UserError(f"{name} must be {element.__name__}, got {value!r} ({type(value).__name__})")
    return value


def toml_literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _check_bounds(settings: Settings) -> None:
    for name, field in FIELDS.items():
        value, rule = getattr(settings, name), field.metadata
        for v in value if isinstance(value, list) else [value]:
            if v is None or isinstance(v, (str, bool)):
                if rule["choices"] and v not in rule["choices"]:
                    hint = did_you_mean(str(v), list(rule["choices"]))
                    raise UserError(f"{name} is {v!r}, must be one of {', '.join(rule['choices'])}{hint}")
                continue
            # NaN fails every comparison, so the bounds are written as what must hold.
            if rule["low"] is not None and not rule["low"] <= v < float("inf"):
                raise UserError(f"{name} is {v}, must be at least {rule['low']} and finite")
            if rule["high"] is not None and not v <= rule["high"]:
                raise UserError(f"{name} is {v}, must be at most {rule['high']}")


def _check_combinations(s: Settings) -> None:
    if not s.digits or len(set(s.digits)) != len(s.digits):
        raise UserError(f"digits is {s.digits}, must name at least one digit and none twice")
    if s.full_bf16 and s.mixed_precision != "bf16":
        raise UserError(f"full_bf16 needs mixed_precision bf16, it is {s.mixed_precision}")
    if s.network_train_unet_only and s.network_train_text_encoder_only:
        raise UserError("network_train_unet_only and network_train_text_encoder_only exclude each other: drop one")
    if s.dim_from_weights and not s.network_weights:
        raise UserError("dim_from_weights needs network_weights, the adapter file to read the rank from")
    if s.lr_warmup_steps >= 1 and s.lr_warmup_steps != int(s.lr_warmup_steps):
        raise UserError(f"lr_warmup_steps is {s.lr_warmup_steps}: whole steps, or a part of the run below 1")
    if s.lr_warmup_steps > s.max_train_steps:
        raise UserError(
            f"lr_warmup_steps is {s.lr_warmup_steps:g}, must be at most max_train_steps {s.max_train_steps}"
        )
    if Path(s.output_name).name != s.output_name:
        raise UserError(f"output_name is {s.output_name!r}, must be a bare name; folders go to output_dir")
    for name in ("resume", "network_weights", "pretrained_model_name_or_path"):
        path = getattr(s, name)
        if path is not None and not Path(path).exists():
            raise UserError(f"{name} {path} does not exist")


def read_settings(argv: list[str]) -> Settings:
    """Defaults, then the TOML file, then the command line; checked."""
    parser = make_parser()
    known, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("--"):
            name = word[2:].split("=")[0]
            if name in NOT_HERE:
                raise UserError(f"--{name} is an sd-scripts option without use here ({NOT_HERE[name]}); remove it")
            raise UserError(f"unknown option --{name}{did_you_mean(name, list(FIELDS))}")
    if unknown:
        raise UserError(f"unexpected {' '.join(unknown)}; options start with --")
    given = vars(known)
    values = read_toml(given["config_file"]) if "config_file" in given else {}
    settings = Settings(**(values | given))
    _check_bounds(settings)
    _check_combinations(settings)
    return settings


def resume_command(settings: Settings, state: Path) -> str:
    """The exact command that goes on from a saved state."""
    words = ["hina-kohya", "train"]
    for name, field in FIELDS.items():
        value = getattr(settings, name)
        if value == default_of(field) or name in ("config_file", "resume"):
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    words += ["--resume", str(state)]
    return " ".join(_quote(w) for w in words)


def _quote(word: str) -> str:
    plain = all(c.isalnum() or c in "-_./=:,+" for c in word)
    # Windows' shells know double quotes only; POSIX shells would expand $ in them, which no option here contains.
    return word if plain and word else f'"{word}"' if sys.platform == "win32" or "'" in word else f"'{word}'"
