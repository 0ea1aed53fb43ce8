"""What is profiled: parameters from a run's file, a list of shapes, or a module's own, and the optimizers to step."""

import dataclasses as dc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hina_kohya.check.forecast import parameters
from hina_kohya.check.forecast.optimizer import Chosen, choose
from hina_kohya.check.optimizer import optimizer_of
from hina_kohya.check.process import SHARED, Listener
from hina_kohya.check.reading import read
from hina_kohya.check.reading.source import Form
from hina_kohya.check.report import arguments_of
from hina_kohya.check.run import How, run_of
from hina_kohya.parameters import roles
from hina_kohya.profile import shapes
from hina_kohya.trainers.errors import UserError

LR = 1e-4


@dc.dataclass(frozen=True)
class Choice:
    """An optimizer by name and arguments, as on a trainer's command line; hooked: its short names are ours, too."""

    name: str
    words: tuple[str, ...] = ()
    lr: float | None = LR
    hooked: bool = True

    @classmethod
    def of(cls, text: str) -> "Choice":
        """``"HinaAdamW state=fp32 use_tam=True"``: a name, then arguments."""
        name, *words = text.split() or [""]
        if not name:
            raise UserError("--optimizer: there is no name; write --optimizer HinaAdamW")
        return cls(name, tuple(words), 1.0 if optimizer_of(name, words, True).finds_lr else LR)

    @property
    def label(self) -> str:
        return " ".join((self.name, *self.words))

    def resolved(self) -> Chosen:
        """Raises UserError for a name that nobody knows, or a package that is not here."""
        chosen = choose(self.name, self.words, self.lr, self.hooked)
        if chosen.missing:
            raise UserError(chosen.missing)
        return chosen


@dc.dataclass(frozen=True)
class Source:
    """Param groups, where "params" holds (name or None, shape, marks) of each parameter; optimizer: the run's."""

    about: str
    groups: list[dict[str, Any]]
    dtype: torch.dtype = torch.float32
    optimizer: Choice | None = None
    notes: tuple[str, ...] = ()

    def tensors(self, device: torch.device, seed: int = 0) -> list[dict[str, Any]]:
        """The groups with values by chance, and zeros where a training starts with them: state may depend on it."""
        generator = torch.Generator().manual_seed(seed)

        def param(name: str | None, shape: Sequence[int], marks: Mapping[str, Any]) -> tuple[str | None, Tensor]:
            values = torch.randn(*shape, generator=generator).mul_(0.02).to(device, self.dtype)
            if roles.identify(name or "", tuple(shape))[1].zero_init:
                values.zero_()
            filled = torch.nn.Parameter(values)
            vars(filled).update(marks)
            return name, filled

        return [{**group, "params": [param(*row) for row in group["params"]]} for group in self.groups]


def of_shapes(text: str, dtype: torch.dtype) -> Source:
    """Raises UserError for what `shapes.parse` refuses."""
    rows = [(name, shape, {}) for name, shape in shapes.parse(text)]
    return Source(text, [{"params": rows}], dtype)


def of_parameters(params: Iterable[tuple[str, Tensor]]) -> Source:
    """Names, shapes and dtype of a module's trained parameters. Raises UserError where there is none, or two dtypes."""
    trained = [(name, param) for name, param in params if param.requires_grad]
    dtypes = {param.dtype for _, param in trained}
    if len(dtypes) != 1:
        what = "none is trained" if not dtypes else f"they are {', '.join(sorted(map(str, dtypes)))}; give one dtype"
        raise UserError(f"of the parameters {what}")
    marks = [{key: value for key, value in vars(param).items() if isinstance(value, (bool, int, float, str))}
             for _, param in trained]  # fmt: skip
    rows = [(name, tuple(param.shape), own) for (name, param), own in zip(trained, marks, strict=True)]
    return Source("these parameters", [{"params": rows}], dtypes.pop())


def of_run(file: Path, how: How, listener: Listener | None = None) -> Source:
    """The parameters and the optimizer of a run, made on a skeleton of its model, without the model.

    Raises UserError for a file that cannot be read, and for a network that cannot be made here.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}; give the file of a run, or --shapes")
    source = read([str(file)])
    if source.form is Form.DATASETS:
        raise UserError(f"{file} is a file of datasets; give the file of a run, or --shapes")
    run = run_of(source, how)
    if not run.network.module:
        raise UserError(f"{file}: network_module is missing; name it, or give --shapes")
    if run.architecture is None:
        raise UserError(f"{file}: the model of {run.trainer.script} is not known here; add --arch, or give --shapes")
    groups, notes = parameters(**arguments_of(run), process=SHARED, listener=listener)
    lr, optimizer = run.args["learning_rate"], run.optimizer
    return Source(
        f"{file.name}, {run.network.module} on {run.architecture}",
        groups,
        getattr(torch, run.dtype),
        Choice(optimizer.type, tuple(map(str, optimizer.words)), lr, run.hooks.active),
        tuple(notes),
    )
