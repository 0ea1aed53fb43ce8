"""Datasets of musubi-tuner, cached before: a part to train on and a part that is held out, in folders of their own."""

import shutil

from tests.support.runs import HARNESS_DIR


def parts(folder, kind, is_double):
    """(--dataset_config, held_out=), for the double or the real trainer of a kind."""
    files = []
    for part, numbers in (("training", "01"), ("held", "23")):
        cache = folder / f"{part}_cache"
        cache.mkdir()
        for number in numbers:
            if is_double:
                (cache / f"0{number}_0064x0064_{kind}.safetensors").touch()
            else:
                for file in (HARNESS_DIR / "assets" / "dit" / kind / "cache").glob(f"0{number}_*"):
                    shutil.copy(file, cache)
        pictures = HARNESS_DIR / "assets" / "dit" / kind / "images"
        files.append(folder / f"{part}.toml")
        files[-1].write_text(
            '[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\nbatch_size = 1\n'
            f'[[datasets]]\nimage_directory = "{pictures}"\ncache_directory = "{cache}"\nnum_repeats = 4\n'
        )
    return tuple(map(str, files))
