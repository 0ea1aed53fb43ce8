"""One record of a run, read once: what the page, its pictures and its words are made of."""

import dataclasses as dc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hina_kohya.loras import summary as loras
from hina_kohya.loras.errors import AdapterError
from hina_kohya.watch import events, folder, samples
from hina_kohya.watch.errors import ReportError
from hina_kohya.watch.events import Curve
from hina_kohya.watch.folder import Entry, Saved
from hina_kohya.watch.samples import Samples

Tick = Callable[[str, int], object]


@dc.dataclass(frozen=True)
class Run:
    """curves: tag -> curve. problems: damaged files, a line each. missing: what the page lacks and what switches it on.

    adapter : of the newest file that can be read
    inputs  : every file that was read
    """

    name: str
    folder: Path
    saved: tuple[Saved, ...]
    adapter: loras.FileSummary | None
    metadata: dict[str, str]
    config: Path | None
    settings: dict[str, str]
    demo: dict[str, Any]
    curves: dict[str, Curve]
    samples: Samples
    files: tuple[Entry, ...]
    problems: tuple[str, ...]
    missing: tuple[str, ...]
    inputs: tuple[Path, ...]


@dc.dataclass(frozen=True)
class Request:
    """Where a run is. None: as found in its folder."""

    folder: Path
    logging_dir: Path | None = None
    config: Path | None = None
    name: str | None = None


def read(request: Request, tick: Tick = lambda what, total: None) -> Run:
    """Raises ReportError where there is no run."""
    place = request.folder
    _check_folder(place)
    everything, problems = folder.adapters(place)
    saved = folder.of_run(everything, request.name)
    metadata = saved[-1].metadata if saved else {}
    name = saved[-1].name if saved else request.name
    config, lines = (request.config, []) if request.config else folder.config_of(place, name)
    problems += lines
    settings = folder.settings(config) if config else {}
    demo, line = folder.demo_summary(place)
    problems += [line] if line else []
    chain, others, lines = _sessions(request, settings, demo, metadata)
    problems += [*lines, *(line for session in chain for line in session.problems)]
    pictures = samples.gather(place, name)
    problems += pictures.problems
    if not (everything or chain or others or pictures.count or demo):
        if problems:
            raise ReportError(problems[0])
        raise ReportError(
            f"{place} holds no run: no .safetensors, no TensorBoard events, no samples; give the trainer's --output_dir"
        )
    adapter, lines = _adapter(saved, tick)
    problems += lines
    curves = events.joined(chain)
    missing = _missing(curves, adapter, pictures, others, [*dict.fromkeys(each.name for each in everything)], name)
    inputs = [each.path for each in everything] + [file for each in chain for file in each.files]
    return Run(
        name=name or settings.get("output_name") or place.resolve().name,
        folder=place,
        saved=tuple(saved),
        adapter=adapter,
        metadata=metadata,
        config=config,
        settings=settings,
        demo=demo,
        curves=curves,
        samples=pictures,
        files=tuple(folder.entries(place)),
        problems=tuple(dict.fromkeys(problems)),
        missing=tuple(missing),
        inputs=tuple([*inputs, config] if config else inputs),
    )


def _check_folder(place: Path) -> None:
    if place.is_file():
        raise ReportError(f"{place} is a file; give the folder that the trainer wrote it to")
    if not place.is_dir():
        raise ReportError(f"there is no folder {place}; give the trainer's --output_dir")


def _sessions(
    request: Request, settings: dict[str, str], demo: dict[str, Any], metadata: dict[str, str]
) -> tuple[list[events.Session], list[events.Session], list[str]]:
    """Those of the run, the others beside them, and what is damaged."""
    if request.logging_dir is not None and not request.logging_dir.is_dir():
        raise ReportError(f"there is no folder {request.logging_dir}; give the trainer's --logging_dir")
    named = [settings.get("logging_dir"), demo.get("settings", {}).get("logging_dir")]
    folders = [request.folder, *(Path(each) for each in named if isinstance(each, str) and Path(each).is_dir())]
    found, problems = events.sessions([request.logging_dir] if request.logging_dir else folders)
    times = [folder.number(metadata.get(f"ss_training_{when}_at")) for when in ("started", "finished")]
    chain = events.choose(found, *times)
    return chain, [session for session in found if session not in chain], problems


def _adapter(saved: list[Saved], tick: Tick) -> tuple[loras.FileSummary | None, list[str]]:
    """Of the newest file whose tensors can be read, and why newer ones cannot."""
    problems = []
    for each in reversed(saved):
        try:
            return loras.summarise(each.path, tick), problems
        except (AdapterError, OSError) as error:
            problems.append(str(error))
    return None, problems


def _missing(
    curves: dict[str, Curve],
    adapter: loras.FileSummary | None,
    pictures: Samples,
    others: list[events.Session],
    names: list[str],
    name: str | None,
) -> list[str]:
    lines = []
    if not curves:
        lines.append(
            "No losses and learning rates: the trainer logged none here. `--logging_dir logs --log_with tensorboard` "
            "switches it on (sd-scripts, musubi-tuner; `--logging_dir` alone in `hina-kohya train`); where the logs "
            "are elsewhere, give this report `--logging_dir`."
        )
    elif not any(tag.startswith(("loss/validation", "loss/held_out")) and "divergence" not in tag for tag in curves):
        lines.append(
            "No held-out loss, so nothing here says when the run began to learn its images by heart. sd-scripts logs "
            "one with `--validation_split 0.1 --validation_seed 42`; in musubi-tuner `network_args "
            "held_out=held_out.toml` makes one, in `hina-kohya train` `--validation_split 0.1`."
        )
    if adapter is None:
        lines.append("No adapter that can be read, so there are no pictures of its blocks.")
    if not (pictures.count or pictures.sheet or pictures.videos):
        lines.append(
            "No samples: `--sample_prompts prompts.txt --sample_every_n_steps 100` draws them while the trainer works."
        )
    if others:
        dates = ", ".join(str(each.folder) for each in others[-3:])
        lines.append(
            f"{len(others)} other {'starts' if len(others) > 1 else 'start'} of a trainer logged here and are not "
            f"shown, {'lastly ' if len(others) > 3 else ''}{dates}; `--logging_dir` with one of these folders shows it."
        )
    if len(names) > 1:
        rest = ", ".join(each for each in names if each != name)
        lines.append(f"Other runs saved to this folder: {rest}; `--name` shows one of them.")
    return lines
