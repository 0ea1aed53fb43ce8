"""A folder of images as training and held-out samples: train/CLASS/*.png and val/CLASS/*.png."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
PARTS = ("train", "val")
_KEPT = 2**30  # bytes of images in memory; a larger set is read anew each epoch
_SAMPLE = 1000  # images whose mean and deviation stand for all


class ImageFolder(Dataset[tuple[Tensor, Tensor]]):
    """``folder[i]`` is (image [3, size, size], class), the image standardised by ``centre`` and ``spread`` [3, 1, 1].

    Images are cut to a square in the middle and resized. Raises ValueError for one that cannot be read.
    """

    def __init__(self, files: list[tuple[Path, int]], size: int):
        self.files, self.size = files, size
        self.centre, self.spread = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        self._pixels: dict[int, Tensor] | None = {} if len(files) * 3 * size * size <= _KEPT else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self._image(index) - self.centre) / self.spread, torch.tensor(self.files[index][1])

    def _image(self, index: int) -> Tensor:
        """[3, size, size], in [0, 1]."""
        pixels = None if self._pixels is None else self._pixels.get(index)
        if pixels is None:
            pixels = _read(self.files[index][0], self.size)
            if self._pixels is not None:
                self._pixels[index] = pixels
        return pixels.float() / 255

    def standardise(self, like: "ImageFolder | None" = None) -> None:
        """By the mean and deviation of each channel, of its own images or as another folder."""
        if like is not None:
            self.centre, self.spread = like.centre, like.spread
            return
        step = max(1, len(self) // _SAMPLE)
        images = torch.stack([self._image(index) for index in range(0, len(self), step)])
        self.centre = images.mean((0, 2, 3))[:, None, None]
        self.spread = images.std((0, 2, 3))[:, None, None].clamp_min(1 / 255)


def load(path: Path, size: int) -> tuple[ImageFolder, ImageFolder, list[str]]:
    """(train, val, classes). Raises one ValueError that has all that is wrong with the layout."""
    layout = f"it must have train/CLASS/*.png and val/CLASS/*.png (also {', '.join(SUFFIXES[1:])})"
    missing = [part for part in PARTS if not (path / part).is_dir()]
    if missing:
        raise ValueError(f"--data_dir {path} has no folder {' and no folder '.join(missing)}; {layout}")
    files = {part: _classes(path / part) for part in PARTS}
    classes = sorted(files["train"])
    mistakes = [f"{part} has no image in a folder of its class" for part in PARTS if not any(files[part].values())]
    empty = [name for name in classes if not files["train"][name]]
    unknown = sorted(name for name in files["val"] if name not in classes)
    if empty and not mistakes:
        mistakes.append(f"train has no image of {', '.join(empty[:5])}")
    if unknown and not mistakes:
        mistakes.append(f"val has classes that train has not: {', '.join(unknown[:5])}")
    if len(classes) == 1:
        mistakes.append(f"train has one class only, {classes[0]}")
    if mistakes:
        raise ValueError(f"--data_dir {path}: {'; '.join(mistakes)}; {layout}")
    number = {name: index for index, name in enumerate(classes)}
    folders = [
        ImageFolder([(file, number[name]) for name in sorted(files[part]) for file in files[part][name]], size)
        for part in PARTS
    ]
    folders[0].standardise()
    folders[1].standardise(folders[0])
    return folders[0], folders[1], classes


def _classes(path: Path) -> dict[str, list[Path]]:
    """Images of each class, in the order of their names; those in folders within a class, too."""
    folders = [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return {
        folder.name: sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES) for folder in folders
    }


def _read(file: Path, size: int) -> Tensor:
    """[3, size, size], uint8."""
    from PIL import Image, ImageOps  # noqa: PLC0415 (an extra)

    try:
        with Image.open(file) as image:
            square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    except (OSError, ValueError, Image.DecompressionBombError) as exc:
        raise ValueError(f"{file} is no image that can be read ({exc}); remove it or save it anew") from exc
    return torch.from_numpy(np.array(square)).movedim(-1, 0).contiguous()
