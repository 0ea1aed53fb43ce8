"""docs/loss.png and docs/samples.png: the demo with HinaAdamW as it ships, and with AdamW, at one learning rate.

The same images, noise and first weights for both; five minutes on two idle cores.

    python scripts/make_pictures.py
    python scripts/make_pictures.py --output /tmp/pictures --max_train_steps 20 --judge 20    a look at how it goes
"""

import argparse
import sys
from pathlib import Path

from accelerate.state import AcceleratorState
from PIL import Image

from hina_kohya.demo import job, report
from hina_kohya.demo.judge import Judge
from hina_kohya.demo.loop import Trainer
from hina_kohya.demo.settings import read_settings

ROOT = Path(__file__).parents[1]
RATE = "3e-3"  # of those tried, 1e-3 and 3e-3, the one at which AdamW learns the digits
OPTIMIZERS = ("HinaAdamW", "AdamW")  # torch's, which sd-scripts has under this name


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    options, words = parser.parse_known_args(argv)
    losses, drawn, judge = {}, {}, Judge()
    for name in OPTIMIZERS:
        config = ["--config_file", str(ROOT / "configs" / "training" / "digits_lokr.toml"), "--optimizer_args"]
        settings = read_settings(
            [*config, "--optimizer_type", name, "--learning_rate", RATE, "--logging_dir", "", *words]
        )
        model, known = job.load_base(settings)
        groups = (settings.digits, [digit for digit in known if digit not in settings.digits])
        if not drawn:
            drawn["base model"] = report.join(job.draw_groups(model.freeze(), judge, groups, settings))
            model, _ = job.load_base(settings)
        trainer = Trainer(settings, model)
        job.describe(trainer)
        if not trainer.run():
            sys.exit("stopped; no picture was written")
        trainer.network.eval()
        trainer.set_optimizer_mode(training=False)
        losses[name] = trainer.losses
        drawn[f"with {name}"] = report.join(job.draw_groups(trainer.model, judge, groups, settings))
        AcceleratorState._reset_state(reset_partial_state=True)  # one process, two trainers
    report.save_loss(options.output / "loss.png", losses, f"Loss of the demo, learning rate {RATE}")
    report.save_samples(options.output / "samples.png", settings.digits, drawn)
    for name in ("loss.png", "samples.png"):  # half the size, and nobody sees it
        with Image.open(options.output / name) as picture:
            small = picture.convert("RGB").quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        small.save(options.output / name, optimize=True)
    print(f"wrote loss.png and samples.png in {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
