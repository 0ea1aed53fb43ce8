"""Values that a TOML lets through: at which of them sd-scripts is known to stop, measured with 0.11.1 on a tiny SD1.5."""

from collections.abc import Mapping
from typing import Any

# option -> how it stops where the value is text instead of a number, or a fraction instead of a whole one
STOPS = {
    "learning_rate": "measured: '<=' not supported between 'float' and 'str'",
    "network_dim": "measured: empty() wants whole numbers",
    "network_args": "measured: a string is read letter by letter",
    "optimizer_args": "measured: a string is read letter by letter",
    "resolution": "measured: 'int' object has no attribute 'split'",
}
# option -> what happens with a value that argparse would have refused
CHOICES = {
    "mixed_precision": "measured: ValueError from accelerate",
    "lr_scheduler": "measured: ValueError",
}
# option -> the least value; what happens below it; how we know
LEAST: Mapping[str, tuple[int, str, str]] = {
    "max_train_epochs": (1, "nothing is trained", "read: the number of steps becomes 0"),
    "network_dim": (1, "no module is made, and nothing is trained", "read: every network module"),
    "train_batch_size": (1, "no batch can be made", "read: the bucket manager divides by it"),
    "gradient_accumulation_steps": (1, "no step is ever made", "read: division by zero"),
}


def stops(key: str, value: Any) -> str:
    """How the run stops at a value of the wrong type; "" where that is not known."""
    return STOPS.get(key, "")


def choice_stops(key: str) -> str:
    return CHOICES.get(key, "")


def unread_choice(key: str, args: Mapping[str, Any]) -> bool:
    """Whether an option is read only beside another one that is off."""
    return key == "dynamo_backend" and not args.get("torch_compile")
