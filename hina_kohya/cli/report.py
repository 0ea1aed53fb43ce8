"""`hina-kohya report RUN_DIR -o report.html`: one page about a training run, or about two."""

import argparse
import sys
from pathlib import Path

from hina_kohya.cli.parser import Parser
from hina_kohya.cli.resize import Bar

EXAMPLE = """examples:
  hina-kohya report output                                   writes output/report.html
  hina-kohya report output -o mine.html --logging_dir logs   where the trainer logged to another folder
  hina-kohya report output --config run.toml                 with the options that the trainer was given
  hina-kohya report output --compare other_output            two runs side by side"""
LIBRARIES = ("matplotlib", "PIL", "tensorboard", "jinja2")


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya report",
        description="One page about a finished or running training of sd-scripts, musubi-tuner or `hina-kohya train`: "
        "what was trained and with what, losses, learning rates, the adapter's blocks, samples, and what the numbers "
        "say in words. The page needs no network.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="the trainer's --output_dir")
    parser.add_argument("-o", "--output", type=Path, metavar="HTML", help="RUN_DIR/report.html by default")
    parser.add_argument("--logging_dir", type=Path, metavar="DIR", help="the trainer's, where it is not in RUN_DIR")
    parser.add_argument("--config", type=Path, metavar="TOML", help="the trainer's, where it is not in RUN_DIR")
    parser.add_argument("--name", metavar="NAME", help="the --output_name, where RUN_DIR holds several runs")
    parser.add_argument("--compare", type=Path, metavar="RUN_DIR2", help="another run, beside this one")
    parser.add_argument("--compare_logging_dir", type=Path, metavar="DIR", help="that of the other run")
    args = parser.parse_args(argv)

    try:
        return _report(args)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in LIBRARIES:
            raise
        print(f'hina-kohya report: error: {missing} is missing; pip install "hina-kohya[report]"', file=sys.stderr)
        return 2


def _report(args: argparse.Namespace) -> int:
    import torch  # noqa: PLC0415 (not for --help)

    from hina_kohya.watch import page, run  # noqa: PLC0415
    from hina_kohya.watch.errors import ReportError  # noqa: PLC0415

    torch.set_num_threads(1)  # thousands of small matrices: threads would wait for each other for longer than they work
    requests = [run.Request(args.folder, args.logging_dir, args.config, args.name)]
    if args.compare:
        requests.append(run.Request(args.compare, args.compare_logging_dir))
    output = args.output or args.folder / "report.html"
    try:
        page.refuse(output, [])
        with Bar() as bar:
            runs = [run.read(request, bar.tick) for request in requests]
            page.refuse(output, [path for each in runs for path in each.inputs])
            page.write(output, runs, bar.tick)
    except (ReportError, OSError) as error:
        print(f"hina-kohya report: error: {error}", file=sys.stderr)
        return 2
    for line in dict.fromkeys(line for each in runs for line in each.problems):
        print(f"hina-kohya report: note: {line}", file=sys.stderr)
    print(f"written to {output}, {page.size(output.stat().st_size)}")
    return 0
