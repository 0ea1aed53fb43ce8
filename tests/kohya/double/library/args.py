"""Double of sd-scripts' library/args.py."""

import argparse
import logging
import os
import sys

import toml

logger = logging.getLogger(__name__)


def read_config_from_file(args, parser):
    """Sections flattened by one level, values as they are, unknown keys kept; the command line wins."""
    if not args.config_file:
        return args
    path = args.config_file if args.config_file.endswith(".toml") else args.config_file + ".toml"
    if not os.path.exists(path):
        logger.info("%s not found", path)
        sys.exit(1)
    flat = {}
    for key, value in toml.load(path).items():
        flat.update(value if isinstance(value, dict) else {key: value})
    args = parser.parse_args(namespace=argparse.Namespace(**flat))
    args.config_file = args.config_file.removesuffix(".toml")
    return args


def verify_command_line_training_args(args):
    """Only a hint about secrets on the command line, there; none are here."""


def resume_from_local_or_hf_if_specified(accelerator, args):
    if args.resume:
        logger.info("resume training from %s", args.resume)
        accelerator.load_state(args.resume)
