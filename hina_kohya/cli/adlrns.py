"""`hina-kohya adlrns export FILE ...`: plain LoRA files out of an ADLRNS file; also `show` and `run`."""

import argparse
import sys
from pathlib import Path

from hina_kohya.adlrns.layer import running
from hina_kohya.cli.parser import Parser

EXAMPLES = """examples:
  hina-kohya adlrns export lora.safetensors --mean-field -o plain.safetensors
  hina-kohya adlrns show lora.safetensors -o tables.png
  hina-kohya adlrns run --config configs/adlrns/patches.toml
  hina-kohya adlrns run --data_dir images --save_dir runs/images"""
EXAMPLE = """examples:
  hina-kohya adlrns export lora.safetensors --mean-field -o plain.safetensors   nearest to the dynamic adapter
  hina-kohya adlrns export lora.safetensors --rank 4 -o small.safetensors       the 4 directions of the most gain
  hina-kohya adlrns export lora.safetensors --budget 4 -o small.safetensors     mean rank 4, more where it gains more
  hina-kohya adlrns export lora.safetensors --per-bin -o part.safetensors       a file for each part of the sampling"""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya adlrns",
        description="ADLRNS: low-rank layers whose directions depend on the input's state, within a budget.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    export = commands.add_parser(
        "export",
        help="write a plain LoRA file",
        description="A plain LoRA, which every program loads, out of a file of --network_module hina_kohya.adlrns.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("file", type=Path, help="a .safetensors file of an ADLRNS network")
    how = export.add_mutually_exclusive_group(required=True)
    how.add_argument("--rank", type=int, metavar="N", help="the N directions of the most gain of every module")
    how.add_argument("--budget", type=float, metavar="B", help="a mean rank of B, more where it gains more")
    how.add_argument("--mean-field", action="store_true", help="all directions, each by its share of energy")
    how.add_argument(
        "--per-bin", action="store_true", help="a file for each bin, OUT-1of6 and so on, with its percents"
    )
    export.add_argument("--shift", type=float, help="of --per-bin: that of the model's schedule; 1 by default")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    export.set_defaults(run=_export)
    show = commands.add_parser(
        "show",
        help="which directions act at which timestep",
        description="Prints the mean rank of each bin of timesteps, and draws the tables of an ADLRNS file.",
        epilog="example:\n  hina-kohya adlrns show lora.safetensors -o tables.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("file", type=Path, help="a .safetensors file of an ADLRNS network")
    show.add_argument("-o", "--output", type=Path, metavar="PNG", help="a picture of the tables")
    show.set_defaults(run=_show)
    commands.add_parser("run", help="compress a denoiser and compare, or train a ResNet on your images", add_help=False)
    if argv[:1] == ["run"]:
        return running.main(argv[1:], Parser)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print('hina-kohya adlrns: error: matplotlib is missing; pip install "hina-kohya[plot]"', file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"hina-kohya adlrns: error: {error}", file=sys.stderr)
        return 2


def _show(args: argparse.Namespace) -> int:
    from hina_kohya.adlrns.adapter import files, pictures  # noqa: PLC0415

    tensors, metadata = files.read(args.file)
    if args.output:
        files.refuse_same(args.file, args.output)
    modules = files.modules_of(tensors)
    ranks = pictures.ranks(modules).double()
    print(f"{args.file}: {len(modules)} modules, mean rank {ranks.mean():.3g}")
    for number, column in enumerate(ranks.unbind(1)):
        least, most = int(column.min()), int(column.max())
        print(f"  bin {number + 1} of {ranks.shape[1]}: mean rank {column.mean():.3g}, modules from {least} to {most}")
    if files.METADATA in metadata:
        print(f"  made with {metadata[files.METADATA]}")
    if args.output:
        from hina_kohya.loras.summary import blocks_of_names  # noqa: PLC0415

        pictures.draw(args.output, modules, blocks_of_names([*modules]))
        print(f"written to {args.output}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from hina_kohya.adlrns.adapter.files import export_bins, export_file  # noqa: PLC0415 (torch: not for --help)

    if args.shift is not None and not args.per_bin:
        raise ValueError("--shift says which part of the sampling a bin is; it needs --per-bin")
    if args.per_bin:
        for each in export_bins(args.file, args.output, 1.0 if args.shift is None else args.shift):
            print(f"start_percent {each.start:.3f}, end_percent {each.end:.3f}: {_line(each.path, each.ranks)}")
    else:
        print(_line(args.output, export_file(args.file, args.output, args.rank, args.budget)))
    return 0


def _line(path: Path, ranks: dict[str, int]) -> str:
    least, most, mean = min(ranks.values()), max(ranks.values()), sum(ranks.values()) / len(ranks)
    return f"{path}: {len(ranks)} modules, rank {least} to {most}, mean {mean:.3g}"
