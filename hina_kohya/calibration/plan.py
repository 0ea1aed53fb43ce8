"""The run of a user's configuration as a calibration: same model, data, network and loss; nothing is learnt or kept."""

import dataclasses as dc
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import toml

from hina_kohya.calibration import EMBEDDED
from hina_kohya.calibration.still import NAME as STILL
from hina_kohya.check import reading
from hina_kohya.check.network import inner_of
from hina_kohya.check.run import options_of_all
from hina_kohya.check.schema import Schema
from hina_kohya.check.trainer import script_of, trainer_of
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.network_args import OURS

# Options whose effect would be learnt, kept, shown or skipped, or would drop parts of the adapter.
_LEFT_OUT = {
    "resume", "initial_epoch", "initial_step", "skip_until_initial_step", "max_train_epochs",
    "gradient_accumulation_steps", "optimizer_args", "use_8bit_adam", "use_lion_optimizer",
    "optimizer_schedulefree_wrapper", "schedulefree_wrapper_args", "fused_backward_pass", "lr_scheduler",
    "lr_scheduler_type", "lr_scheduler_args", "lr_scheduler_num_cycles", "lr_scheduler_power",
    "lr_scheduler_timescale", "lr_scheduler_min_lr_ratio", "lr_warmup_steps", "lr_decay_steps",
    "scale_weight_norms", "network_dropout", "dim_from_weights", "torch_compile", "dynamo_backend", "compile",
    "logging_dir", "log_with", "log_prefix", "log_tracker_name", "log_tracker_config", "log_config",
    "wandb_api_key", "wandb_run_name", "output_config", "training_comment", "async_upload", "validation_split",
    "validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps", "judge",
}  # fmt: skip
_BEGINNINGS = ("save_", "sample_", "huggingface_")
# Of `network_args`: what drops parts of the adapter, and all that only the hooks read, about learning and keeping.
_ARGUMENTS = ("dropout", "rank_dropout", "module_dropout", *OURS)
# Any of them names what is trained on; the embedded trainer has its model and images with it.
_OUTSIDE = ("pretrained_model_name_or_path", "dit", "dataset_config", "train_data_dir", "in_json")


@dc.dataclass(frozen=True)
class Plan:
    """script: of a trainer, or `EMBEDDED`; values: its options, but for adapter, steps and output folder."""

    script: str
    why: str
    values: Mapping[str, Any]

    @contextmanager
    def words(self, adapter: Path, steps: int) -> Iterator[list[str]]:
        """Script and options on a command line, while the files that they name exist."""
        with tempfile.TemporaryDirectory(prefix="hina-calibration-") as folder:
            config, out = Path(folder) / "run.toml", Path(folder) / "out"
            out.mkdir()
            own = {"network_weights": str(adapter.absolute()), "max_train_steps": steps, "optimizer_type": STILL,
                   "output_dir": str(out), "output_name": "calibration"}  # fmt: skip
            config.write_text(toml.dumps({**self.values, **own}), encoding="utf-8")
            yield [self.script, "--config_file", str(config)]


def plan_of(config: Path, checkout: str | None = None, script: str | None = None) -> Plan:
    """Raises UserError for what no trainer reads, and where the trainer is not found."""
    source = reading.read([str(config)])
    if not any(source.values.get(key) for key in _OUTSIDE) and source.script == "":
        return Plan(EMBEDDED, "it names no model and no images", _kept(source.values))
    source = source.parsed(options_of_all())
    home = checkouts.at(checkout, "--sd-scripts") if checkout else None
    arguments = source.values.get("network_args")
    inner = inner_of(str(source.values.get("network_module") or ""), arguments if isinstance(arguments, list) else [])
    trainer = home.trainer if home else trainer_of(source.values, inner, source.mentions, script)
    choice = script_of(
        source, inner, Schema(trainer), script, None
    )  # of all options that are known, not the checkout's
    home = home or checkouts.find(trainer)
    if home is None:
        raise UserError(
            f"{config} is for {trainer.name}, which is not found; add --sd-scripts PATH or set {trainer.home}"
        )
    path = home.script(choice.script)
    if path is None:
        raise UserError(f"there is no {choice.script} in {home.root}; --script names another")
    return Plan(str(path), choice.why, _kept(source.values))


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in values.items()
            if value is not None and key not in _LEFT_OUT and not key.startswith(_BEGINNINGS)}  # fmt: skip
    arguments = options.get("network_args")
    if isinstance(arguments, list):
        options["network_args"] = [word for word in arguments if str(word).partition("=")[0] not in _ARGUMENTS]
    return options
