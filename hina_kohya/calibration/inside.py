"""`python -m hina_kohya.calibration.inside ADAPTER METRIC SCRIPT ...`: a trainer's run, and the metric that it leaves.

Hooks are on the layers of the network that the run makes, whoever makes it. No trainer knows of it.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import wrapt

from hina_kohya import launch
from hina_kohya.calibration import EMBEDDED
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.gathering import Gathering
from hina_kohya.trainers import hooks
from hina_kohya.trainers.calibrating import layers_of
from hina_kohya.trainers.errors import UserError


class Watch:
    """Gathers the metric of an adapter while a run is under way: of the last network that was made."""

    def __init__(self, adapter: Path):
        self.adapter = adapter
        self.gathering: Gathering | None = None

    def network(self, network: Any) -> None:
        """A new network, before it is put onto the models. Raises AdapterError where it is not the adapter's."""
        if self.gathering is not None:  # one of --base_weights came before
            self.gathering.__exit__()
        self.gathering = Gathering.on(layers_of(network), self.adapter)
        self.gathering.__enter__()

    def scaled(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        """In the place of GradScaler.scale, which multiplies fp16's losses."""
        loss = wrapped(*args, **kwargs)
        if self.gathering is not None:
            self.gathering.loss_scale = torch.tensor(float(instance.get_scale()))
        return loss

    def save(self, path: Path) -> None:
        """Raises AdapterError and OSError."""
        if self.gathering is None:
            raise AdapterError("the run made no network; its network_module is none that hina-kohya can watch")
        self.gathering.__exit__()
        self.gathering.save(path)


def main(argv: list[str]) -> None:
    adapter, metric, script, *words = argv
    watch = Watch(Path(adapter))
    hooks.observe(watch.network)
    wrapt.wrap_function_wrapper("torch.amp.grad_scaler", "GradScaler.scale", watch.scaled)
    if script == EMBEDDED:
        _embedded(words)
    else:
        launch.main([script, *words])
    watch.save(Path(metric))


def _embedded(words: list[str]) -> None:
    from hina_kohya.demo import job, settings  # noqa: PLC0415
    from hina_kohya.demo.loop import Trainer  # noqa: PLC0415 (imports diffusers)

    hooks.install()
    read = settings.read_settings(words)
    Trainer(read, job.load_base(read)[0]).run()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, AdapterError) as error:
        print(f"hina-kohya: error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
