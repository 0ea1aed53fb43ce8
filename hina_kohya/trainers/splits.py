"""sd-scripts' split into images that are trained on and images that are held out: whether it is one, and its order."""

from typing import Any

from hina_kohya.trainers.errors import UserError

_SHARE = 1e4  # shares are given with four digits


def check(training: Any, held_out: Any, wish: str) -> None:
    """Two dataset groups of sd-scripts, the second None where there is none. Raises UserError unless they are apart."""
    if not held_out:
        raise UserError(
            f"network_args: {wish} needs images that are held out, and there are none: give --validation_split 0.1 "
            "--validation_seed 42 (a tenth of the images, at least one of each folder)"
        )
    both = training.image_data.keys() & held_out.image_data.keys()
    if both:
        count = f"{len(both)} of the {len(held_out.image_data)} held-out images are trained on, too"
        raise UserError(f"network_args: {wish}: {count}: {_why(training, held_out, len(both))}")


def _why(training: Any, held_out: Any, shared: int) -> str:
    if any(dataset.validation_seed is None for dataset in held_out.datasets):
        return "without a seed sd-scripts draws each part by itself; give --validation_seed 42"
    held = len(held_out.image_data)
    if shared == held:
        return (
            "sd-scripts splits no dataset of a metadata file (in_json); give image_dir and captions beside the images"
        )
    total = len(training.image_data.keys() | held_out.image_data.keys())
    value = f"--validation_split {share(held, total):g}"
    return f"it rounds both parts up; give {value} for {held} of {total}, or another whole number"


def share(held: int, total: int) -> float:
    """A --validation_split that holds out exactly so many: slightly above it, so that training loses each of them."""
    return (held * _SHARE // total + 1) / _SHARE


def hold(held_out: Any) -> None:
    """sd-scripts shuffles in each epoch, in the workers of a data loader: images would meet other noise."""
    for dataset in held_out.datasets:
        dataset.shuffle_buckets = stay


def stay() -> None:
    """In the place of a shuffle. Of a module's own level, so that a worker of Windows can be given it."""
