"""`hina-kohya resize FILE[:WEIGHT] ... --size 20MB -o OUT`: a smaller LoRA out of any adapter."""

import argparse
import dataclasses as dc
import re
import sys
from pathlib import Path
from typing import Any

from hina_kohya.cli import checkout
from hina_kohya.cli.parser import Parser
from hina_kohya.text import bytes_of

EXAMPLE = """examples:
  hina-kohya resize lora.safetensors --size 20MB -o small.safetensors
  hina-kohya resize lokr.safetensors --size 25% -o small.safetensors      a quarter of the bytes, as a LoRA
  hina-kohya resize lora.safetensors --rank 8 -o small.safetensors        the bytes of rank 8, more where it pays
  hina-kohya resize lora.safetensors --keep 0.98 -o small.safetensors     98 % of the energy in the fewest bytes
  hina-kohya resize lora.safetensors --size 25% --calibrate my.toml -o small.safetensors
                                                                          what the images of my.toml need
  hina-kohya resize style.safetensors:0.8 face.safetensors:0.5 --size 40MB -o both.safetensors"""
STYLES = ("kohya", "peft", "diffusers", "comfy")


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya resize",
        description="A smaller LoRA out of a LoRA, LoCon, LoKr, LoHa or DoRA file, or out of a sum of several: of all "
        "modules' directions, those that keep the most of the change of the weights for each byte.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_files(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--size", metavar="SIZE", help="bytes of the file at most: 20MB, 19MiB, 20000000, or 25%% of the input"
    )
    how.add_argument("--rank", type=int, metavar="N", help="as many bytes as rank N everywhere takes; ranks differ")
    how.add_argument("--keep", type=float, metavar="SHARE", help="the share of the energy (squared norm) that stays")
    calibration = parser.add_argument_group("by your data")
    calibration.add_argument(
        "--calibrate", type=Path, metavar="RUN", help="the TOML (or script) of the run that trained it: a few steps of "
        "its trainer, which change nothing, tell what your images need; or the .metric.safetensors of an earlier one",
    )  # fmt: skip
    calibration.add_argument("--calibrate-steps", type=int, default=64, metavar="N", help="64 by default")
    calibration.add_argument("--script", help="the trainer, such as sdxl_train_network.py; told from RUN if not given")
    checkout.add_option(calibration)
    return run("resize", parser.parse_args(argv))


def add_files(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resize` and `merge` alike."""
    parser.add_argument("files", nargs="+", metavar="FILE[:WEIGHT]", help="a .safetensors file of an adapter")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="never one of the inputs")
    parser.add_argument("--names", choices=STYLES, help="module names of the result; the input's by default")
    parser.add_argument("--uniform", action="store_true", help="one rank for every module, which diffusers needs")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), help="the input's by default")


def run(command: str, args: argparse.Namespace) -> int:
    """Resize with a progress bar, and say what was done."""
    import torch  # noqa: PLC0415 (not for --help)

    from hina_kohya.loras.errors import AdapterError  # noqa: PLC0415
    from hina_kohya.loras.resizing import Request, check, resize  # noqa: PLC0415
    from hina_kohya.trainers.errors import UserError  # noqa: PLC0415

    torch.set_num_threads(1)  # thousands of small matrices: threads would wait for each other for longer than they work
    try:
        sources = tuple(source(word) for word in args.files)
        size = None if args.size is None else _size(args.size, sources)
        request = Request(sources, args.output, size, args.rank, args.keep, args.names, args.dtype, None, args.uniform)
        check(request)
        metric, notes = _metric(args, sources) if command == "resize" else (None, [])
        request = dc.replace(request, metric=metric)
        with Bar() as bar:
            result = resize(request, bar.tick)
    except (AdapterError, UserError, OSError) as error:
        print(f"hina-kohya {command}: error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {result.bytes / 1e6:.2f} MB of {result.bytes_before / 1e6:.2f} MB")
    print(f"  {result.line}")
    for note in [*notes, *result.notes]:
        print(f"  {note}")
    return 0


def _metric(args: argparse.Namespace, sources: tuple[Any, ...]) -> tuple[Path | None, list[str]]:
    """The file that `--calibrate` names, or that the run makes, or that lies beside the adapter; what is to be said.

    Raises AdapterError, UserError.
    """
    if args.calibrate is None:
        return _metric_beside(sources)
    if args.calibrate.suffix == ".safetensors":
        return args.calibrate, []
    from hina_kohya.calibration.run import calibrate  # noqa: PLC0415
    from hina_kohya.loras import gathering, metric  # noqa: PLC0415

    metric.check_sources(sources)
    gathering.check(sources[0].path)  # before a model is loaded
    file = calibrate(sources[0].path, args.calibrate, args.calibrate_steps, args.checkout, args.script, print)
    return file, [f"{file} stays: for another size leave --calibrate away"]


def _metric_beside(sources: tuple[Any, ...]) -> tuple[Path | None, list[str]]:
    """What a training with `calibrate_steps`, or `--calibrate` before, has left; only of one adapter at weight 1."""
    from hina_kohya.loras.errors import AdapterError  # noqa: PLC0415
    from hina_kohya.loras.metric import Metric, beside  # noqa: PLC0415

    files = [file for source in sources if (file := beside(source.path)).is_file()]
    if not files:
        return None, []
    try:
        Metric(files[0], sources)
    except AdapterError as error:
        return None, [f"{files[0]} is not used: {error}"]
    return files[0], [f"by {files[0]}, which lies beside it"]


def source(word: str) -> Any:
    """`lora.safetensors:0.5`; a colon may also be part of a path."""
    from hina_kohya.loras.errors import AdapterError  # noqa: PLC0415
    from hina_kohya.loras.summing import Source  # noqa: PLC0415

    path, colon, weight = word.rpartition(":")
    if not colon or Path(word).exists() or not path.endswith(".safetensors"):
        return Source(Path(word))
    try:
        value = float(weight)
    except ValueError:
        raise AdapterError(f"the weight of {word} is {weight!r} and must be a number, as in {path}:0.5") from None
    if value == 0 or not abs(value) < float("inf"):
        raise AdapterError(f"the weight of {word} must be finite and not 0; leave the file out")
    return Source(Path(path), value)


def _size(text: str, sources: tuple[Any, ...]) -> int:
    """Bytes. Raises AdapterError, also for a source that is none where they are a share of it."""
    from hina_kohya.loras.errors import AdapterError  # noqa: PLC0415
    from hina_kohya.loras.reading import AdapterFile  # noqa: PLC0415

    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if share:
        return int(float(share[1]) * sum(AdapterFile(source.path).size for source in sources) / 100)
    size = bytes_of(text)
    if size is None:
        raise AdapterError(f"--size {text!r} is no size; write 20MB, 19MiB, 20000000 or 25%")
    return int(size)


class Bar:
    """One bar a pass on a terminal, nothing in a log."""

    def __enter__(self) -> "Bar":
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress  # noqa: PLC0415

        console = Console(stderr=True)
        self._progress = Progress(console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, Any] = {}
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def tick(self, what: str, total: int) -> None:
        if self._progress is None:
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.advance(self._tasks[what])
