"""The double as sd-scripts was before 0.11: all of `library` in train_util, and every rate logged twice."""

import re
import shutil
from pathlib import Path

DOUBLE = Path(__file__).parents[1] / "kohya" / "double"
PARTS = ("utils", "optimizer", "args", "accelerator_setup", "checkpoint_io")
STEP_LOGS = '''"""What train_network.py logged of the learning rates before 0.11."""


class StepLogs:
    def generate_step_logs(self, args, current_loss, avr_loss, lr_scheduler, lr_descriptions, optimizer=None):
        """Every rate twice: by description, and as `lr/group{i}` (the first as `lr/textencoder`)."""
        logs = dict(zip(("loss/current", "loss/average"), (current_loss, avr_loss), strict=True))
        rates = lr_scheduler.get_last_lr()
        first = 0 if args.network_train_unet_only else 1
        kind = args.optimizer_type.lower()
        adaptive = kind.startswith("dadapt") or kind == "prodigy"
        plus = kind.endswith("prodigyplusschedulefree") and optimizer is not None
        for i, rate in enumerate(rates):
            names = [f"group{i}"] if i >= first else []
            if lr_descriptions is not None:
                names.insert(0, lr_descriptions[i])
            else:
                names.insert(0, f"group{i + first}" if len(rates) > 2 else "unet")
            for name in names:
                logs[f"lr/{name}"] = float(rate)
                if adaptive:
                    group = lr_scheduler.optimizers[-1].param_groups[i]
                    logs[f"lr/d*lr/{name}"] = group["d"] * group["lr"]
            if plus:
                group = optimizer.param_groups[i]
                logs[f"lr/d*lr/group{i}" if i >= first else "lr/d*lr"] = group["d"] * group["lr"]
        if first:
            logs["lr/textencoder"] = float(rates[0])
        return logs
'''
# A local function in the place of a method; `metadata` is one of its cells.
SAVING = """        def save_model(ckpt_name, unwrapped_nw, steps, epoch_no):
            os.makedirs(args.output_dir, exist_ok=True)
            metadata["ss_steps"], metadata["ss_epoch"] = str(steps), str(epoch_no)
            metadata["ss_training_finished_at"] = str(time.time())
            unwrapped_nw.save_weights(os.path.join(args.output_dir, ckpt_name), save_dtype, metadata)

"""


def make(folder):
    """A checkout in this layout, in `folder`."""
    shutil.copytree(DOUBLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    library = folder / "library"
    whole = "\n\n".join((library / f"{part}.py").read_text(encoding="utf-8") for part in PARTS)
    (library / "train_util.py").write_text(whole, encoding="utf-8")
    for part in PARTS:
        (library / f"{part}.py").unlink()
    (folder / "step_logs.py").write_text(STEP_LOGS, encoding="utf-8")
    for script in ("train_network.py", "sdxl_train_network.py"):
        text = (folder / script).read_text(encoding="utf-8")
        text = re.sub(r"(import library\.|from library\.)\w+ (as|import) ", r"\1train_util \2 ", text)
        text = text.replace(
            "from library import accelerator_setup, checkpoint_io",
            "import library.train_util as accelerator_setup\nimport library.train_util as checkpoint_io",
        )
        text = re.sub(r"self\.(_metadata = .*\n)", lambda found: found[1].removeprefix("_") + SAVING, text)
        text = re.sub(r"self\._save_model\(\s+args=args,.*?save_dtype=save_dtype, ", "save_model(", text)
        text = re.sub(r"    def _save_model\(.*?(?=    def )", "", text, flags=re.DOTALL)
        (folder / script).write_text(text, encoding="utf-8")
    return folder
