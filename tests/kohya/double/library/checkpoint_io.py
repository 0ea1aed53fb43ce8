"""Double of sd-scripts' library/checkpoint_io.py."""

import os


def save_state_on_train_end(args, accelerator):
    accelerator.save_state(os.path.join(args.output_dir, f"{args.output_name}-state"))
