"""`hina-kohya inspect FILE [FILE]`: what is in an adapter file, and how alike two are."""

import argparse
import sys
from pathlib import Path

from hina_kohya.cli.parser import Parser
from hina_kohya.cli.resize import Bar

EXAMPLE = """examples:
  hina-kohya inspect lora.safetensors                           algorithm, ranks, norms, spectra, its training
  hina-kohya inspect lora.safetensors -o lora.png               also a picture
  hina-kohya inspect one.safetensors other.safetensors          how alike, block by block"""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya inspect",
        description="What is in an adapter file: algorithm, ranks, norms and spectra by block, and what it says about "
        "its training. Two files: how alike they are.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a .safetensors file of a LoRA, LoCon, LoKr, LoHa or DoRA")
    parser.add_argument("other", type=Path, nargs="?", help="another one of the same base model")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="a picture")
    args = parser.parse_args(argv)

    import torch  # noqa: PLC0415 (not for --help)

    from hina_kohya.loras.errors import AdapterError  # noqa: PLC0415

    torch.set_num_threads(1)  # thousands of small matrices: threads would wait for each other for longer than they work
    try:
        _inspect(args.file, args.other, args.output)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print('hina-kohya inspect: error: matplotlib is missing; pip install "hina-kohya[plot]"', file=sys.stderr)
        return 2
    except (AdapterError, OSError) as error:
        print(f"hina-kohya inspect: error: {error}", file=sys.stderr)
        return 2
    return 0


def _inspect(file: Path, other: Path | None, output: Path | None) -> None:
    from rich.console import Console  # noqa: PLC0415

    from hina_kohya.loras import likeness, pictures, screen, summary  # noqa: PLC0415
    from hina_kohya.loras.errors import AdapterError  # noqa: PLC0415

    if output is not None and output.suffix not in (".png", ".svg", ".pdf", ".jpg"):
        raise AdapterError(f"-o {output} must end with .png, .svg, .pdf or .jpg")
    with Bar() as bar:
        first = summary.summarise(file, bar.tick)
        second = summary.summarise(other, bar.tick) if other else None
        alike, lone = likeness.compare(file, other, bar.tick) if other else ({}, (0, 0))
    text = screen.two_files(first, second, alike, lone) if second else screen.one_file(first)
    on_terminal = sys.stdout.isatty()  # in a file lines are as long as they are, and not cut at 80 columns
    Console(width=None if on_terminal else 160).print(text, highlight=False, soft_wrap=not on_terminal)
    if output is None:
        return
    if second:
        pictures.two_files(output, first, second, alike)
    else:
        pictures.one_file(output, first)
    print(f"written to {output}")
