"""Packages that an option imports: where one is missing here, that is no fault of the configuration."""

import sys
from collections.abc import Iterator

from hina_kohya.check.finding import Finding, missing
from hina_kohya.check.optimizer import installed
from hina_kohya.check.rules import rule
from hina_kohya.check.run import Run

# option -> module that it imports, and how that is installed
_OF_SWITCHES = {
    "xformers": ("xformers", "xformers"),
    "deepspeed": ("deepspeed", "deepspeed"),
    "use_sage_attn": ("sageattention", "sageattention"),
    "use_flash_attn": ("flash_attn", "flash-attn"),
    "sage_attn": ("sageattention", "sageattention"),
    "flash_attn": ("flash_attn", "flash-attn"),
}
_OF_TRACKERS = {
    "wandb": ("wandb", "wandb"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "all": ("tensorboard", "tensorboard"),
}


@rule
def option_needs_package(run: Run) -> Iterator[Finding]:
    unread = run.schema.unread(run.trainer.script)
    for key, (module, package) in _OF_SWITCHES.items():
        if key in run.options and key not in unread and run.args.get(key) is True and not installed(module):
            yield _missing(key, module, package)
    module, package = _OF_TRACKERS.get(str(run.given("log_with")), ("", ""))
    if module and not installed(module):
        yield _missing("log_with", module, package)


def _missing(key: str, module: str, package: str) -> Finding:
    what = f"it imports {module}, which {sys.executable} lacks"
    return missing(key, what, "measured: ImportError", f"pip install {package}")
