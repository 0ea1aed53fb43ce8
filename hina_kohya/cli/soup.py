"""`hina-kohya soup FILE[:WEIGHT] ... -o OUT`: the average of files that one training saved."""

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from hina_kohya.cli.parser import Parser
from hina_kohya.cli.resize import Bar, source

EXAMPLE = """examples:
  hina-kohya soup run/*.safetensors -o soup.safetensors                         all files alike
  hina-kohya soup run/*.safetensors --ema 0.15 -o soup.safetensors              the later ones more, by their steps
  hina-kohya soup a.safetensors:0.3 b.safetensors:0.7 -o soup.safetensors       weights by hand"""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya soup",
        description="The average of adapter files that one training saved, number by number: same keys, shapes and "
        "size, any algorithm. Files of different trainings are for `hina-kohya merge`.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE[:WEIGHT]", help="a .safetensors file of an adapter, or a pattern with *"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="never one of the inputs")
    parser.add_argument(
        "--ema", type=float, metavar="WIDTH",
        help="weights of a power profile over the steps: its width as a share of the run, at most 0.2887 (all alike)",
    )  # fmt: skip
    args = parser.parse_args(argv)

    import torch  # noqa: PLC0415 (not for --help)

    from hina_kohya.loras.averaging import soup  # noqa: PLC0415
    from hina_kohya.loras.errors import AdapterError  # noqa: PLC0415

    torch.set_num_threads(1)  # thousands of small matrices: threads would wait for each other for longer than they work
    try:
        paths, weights = _paths(args.files)
        if weights is not None and args.ema is not None:
            raise AdapterError(f"--ema {args.ema:g} finds the weights, and there are some by hand; leave out one")
        with Bar() as bar:
            result = soup(paths, weights, args.ema, bar.tick)
            result.write(args.output, bar.tick)
    except (AdapterError, OSError) as error:
        print(f"hina-kohya soup: error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB, {result.line}")
    for share in result.shares:
        steps = "" if share.steps is None else f", {share.steps} steps"
        print(f"  {share.weight:7.2%}  {share.file.path.name}{steps}")
    for note in result.notes:
        print(f"  {note}")
    return 0


def _paths(words: Sequence[str]) -> tuple[list[Path], list[float] | None]:
    """(files, their weights; None where nobody gave one). Patterns are read here, too: Windows' shells leave them."""
    from hina_kohya.loras.errors import AdapterError  # noqa: PLC0415

    paths, weights = [], []
    for word in words:
        matches = sorted(glob.glob(word)) if glob.has_magic(word) and not Path(word).exists() else []
        if matches:
            paths += map(Path, matches)
            weights += [None] * len(matches)
            continue
        entry = source(word)
        is_weighted = entry.path != Path(word)
        if is_weighted and entry.weight <= 0:
            raise AdapterError(
                f"the weight of {word} is {entry.weight:g} and must be above 0: it is a share of an average"
            )
        paths.append(entry.path)
        weights.append(entry.weight if is_weighted else None)
    if all(weight is None for weight in weights):
        return paths, None
    if missing := [path for path, weight in zip(paths, weights, strict=True) if weight is None]:
        raise AdapterError(f"{missing[0]} has no weight and others have; write {missing[0]}:1, or none at all")
    return paths, [weight for weight in weights if weight is not None]
