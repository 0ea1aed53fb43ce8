"""What the classifier says of images that a kept adapter draws."""

import json
import tempfile
from functools import cached_property
from pathlib import Path

import torch

from hina_kohya.demo.judge import Judge
from hina_kohya.demo.report import draw

from .plan import Run
from .runs import trainer_of

COUNT = 40  # images of one adapter; 16 steps of each, with guidance, cost as much as a validation of 1,280


class Drawing:
    """Share of images that are read as their caption; each adapter draws once, and `file` keeps what came out."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "drawn.json"
        self.shares: dict[str, float] = json.loads(self.file.read_text()) if self.file.is_file() else {}

    @cached_property
    def _trainer(self):
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(Run(12, "all", 0, 20), Path(folder))
        trainer.network.eval()
        return trainer

    @cached_property
    def _judge(self) -> Judge:
        return Judge()

    def share(self, record: dict, place: int) -> float:
        """Of the weights that a run had at one of its validations, from the noise of its seed."""
        run = Run.of(record)
        step = record["at"][place]
        key = f"{run.key}@{step}"
        if key not in self.shares:
            weights = torch.load(self.folder / f"{run.key}.pt")[step]
            named = dict(self._trainer.network.named_parameters())
            with torch.no_grad():
                for name, value in weights.items():
                    named[name].copy_(value)
            trainer = self._trainer
            self.shares[key] = (
                draw(trainer.model, self._judge, trainer.settings.digits, COUNT, run.seed).verdict().accuracy
            )
            self.file.write_text(json.dumps(self.shares), encoding="utf-8")
        return self.shares[key]
