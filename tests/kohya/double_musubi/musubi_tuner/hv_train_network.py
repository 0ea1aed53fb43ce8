"""Double of musubi-tuner's hv_train_network.py, which re-exports since 0.3 what was in it before."""

from musubi_tuner.training.parser_common import read_config_from_file, setup_parser_common
from musubi_tuner.training.trainer_base import NetworkTrainer

__all__ = ["NetworkTrainer", "read_config_from_file", "setup_parser_common"]
