"""Double of sd-scripts' library/train_util.py, which re-exports since 0.11 what was in it before."""

from library.accelerator_setup import prepare_accelerator
from library.args import (
    read_config_from_file,
    resume_from_local_or_hf_if_specified,
    verify_command_line_training_args,
)
from library.checkpoint_io import save_state_on_train_end
from library.optimizer import (
    get_optimizer,
    get_optimizer_train_eval_fn,
    get_scheduler_fix,
    is_schedulefree_optimizer,
)
from library.utils import setup_logging

__all__ = [
    "get_optimizer",
    "get_optimizer_train_eval_fn",
    "get_scheduler_fix",
    "is_schedulefree_optimizer",
    "prepare_accelerator",
    "read_config_from_file",
    "resume_from_local_or_hf_if_specified",
    "save_state_on_train_end",
    "setup_logging",
    "verify_command_line_training_args",
]
