"""The option that names a trainer's checkout, declared once for every command."""

import argparse

HELP = "the checkout of sd-scripts or musubi-tuner; otherwise SD_SCRIPTS_HOME, MUSUBI_HOME, this folder or one above"


def add_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--sd-scripts", "--musubi", dest="checkout", metavar="PATH", help=HELP)
