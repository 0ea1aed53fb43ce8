"""`hina-kohya merge FILE[:WEIGHT] ... -o OUT`: one LoRA that does what several do together, exactly."""

import argparse

from hina_kohya.cli import resize
from hina_kohya.cli.parser import Parser

EXAMPLE = """examples:
  hina-kohya merge style.safetensors:0.8 face.safetensors:0.5 -o both.safetensors
  hina-kohya merge lokr.safetensors -o lora.safetensors                   a LoKr as a LoRA
  hina-kohya merge lora.safetensors --names comfy -o renamed.safetensors"""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya merge",
        description="The weighted sum of adapters as one LoRA: nothing is lost but rounding, and each module has the "
        "rank that its sum has. `hina-kohya resize` does the same within a size.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resize.add_files(parser)
    parser.set_defaults(size=None, rank=None, keep=1.0, calibrate=None)
    return resize.run("merge", parser.parse_args(argv))
