"""Double of sd-scripts' library/accelerator_setup.py."""

from accelerate import Accelerator


def prepare_accelerator(args):
    return Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with="tensorboard" if args.logging_dir else None,
        project_dir=args.logging_dir,
    )
