"""`hina-kohya profile RUN.toml`: what a step of the optimizer costs, and which technique's it is."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from hina_kohya.cli import checkout
from hina_kohya.cli.parser import Parser
from hina_kohya.cli.resize import Bar
from hina_kohya.trainers.errors import UserError

EXAMPLE = """examples:
  hina-kohya profile my_lokr.toml                                     the run's parameters and its optimizer
  hina-kohya profile my_lokr.toml --optimizer "HinaAdamW state=fp32"  another one beside it; may be repeated
  hina-kohya profile --shapes sdxl-lora-r8 --optimizer "AutomagicCameAMP8bit profile=balanced"
  hina-kohya profile --shapes "lora8:640x2048*70,640x8*200,320"       LoRAs of rank 8; plain shapes and how many of each
  hina-kohya profile --shapes sdxl-lora-r8 --trace steps.json         for chrome://tracing or ui.perfetto.dev

Sets of shapes: sdxl-lora-r4, -r8, -r16, -r64, kohya-lora-r8, sdxl-lokr-f8-d8, sdxl-lokr-f8-full.
torch's AdamW and bitsandbytes' AdamW8bit are stepped beside them. No model, no GPU and no network is needed."""


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else idle threads of one optimizer slow down the next
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler says when it starts and stops
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it warns of a kernel that no optimizer needs
    try:
        text = _profiled(args)
    except UserError as error:
        if args.format == "json":
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        else:
            print(f"hina-kohya profile: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of the trace
        print(f"hina-kohya profile: error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _profiled(args: argparse.Namespace) -> str:
    if (args.run is None) == (args.shapes is None):
        raise UserError("give either the file of a run or --shapes, such as --shapes sdxl-lora-r8")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads {args.threads} must be at least 1")

    import torch  # noqa: PLC0415 (not for --help)

    from hina_kohya.check.run import How  # noqa: PLC0415
    from hina_kohya.profile import profile  # noqa: PLC0415
    from hina_kohya.trainers import checkouts  # noqa: PLC0415

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    place = checkouts.at(args.checkout, "--sd-scripts") if args.checkout else None
    with Bar() as bar:
        result = profile(
            args.run or args.shapes,
            args.optimizer,
            steps=args.steps,
            warmup=args.warmup,
            device=args.device,
            dtype=args.dtype,
            beside=not args.alone,
            trace_file=args.trace,
            how=How(place, args.script, args.arch, args.launched),
            tick=bar.tick,
        )
    if args.format == "json":
        return json.dumps(result.as_json(), indent=1)
    return result.text() + (f"\nwritten to {args.trace}" if args.trace else "")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hina-kohya profile",
        description="What a step of an optimizer costs on this machine: exact bytes of state, kernel launches, bytes "
        "moved, milliseconds; of our optimizers also which technique's they are.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=Path, nargs="?", metavar="RUN.toml", help="the file of a run: a TOML, a script, a JSON of kohya_ss"
    )
    parser.add_argument("--shapes", metavar="LIST", help="instead: sets, shapes with counts, LoRAs; see below")
    parser.add_argument(
        "--optimizer", action="append", default=[], metavar='"NAME ARG=VALUE ..."',
        help="an optimizer to step; by default the run's, or HinaAdamW",
    )  # fmt: skip
    parser.add_argument("--alone", action="store_true", help="nothing beside them")
    parser.add_argument("--steps", type=int, default=15, metavar="N", help="timed steps of each (default 15)")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="steps before (default 3)")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads; torch's own choice by default")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; a GPU where there is one")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of --shapes (default fp32)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="also write two steps of each, .json or .json.gz")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: for programs")
    parser.add_argument("--script", help="the trainer, such as sdxl_train_network.py; told from the file if not given")
    checkout.add_option(parser)
    parser.add_argument("--arch", help="the model, such as sd15 or sdxl; the trainer says which if not given")
    parser.add_argument("--launched", action="store_true", help="the run is started with hina-kohya launch")
    return parser
