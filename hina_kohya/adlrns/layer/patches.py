"""The task that `hina-kohya adlrns run` measures on: patch denoising on scikit-learn's two sample images."""

import dataclasses as dc
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

SIZE, SIGMA = 8, 25 / 255


@dc.dataclass(frozen=True)
class Patches:
    """noisy, clean: [N, 64] in [0, 1] but for the noise; a loader of shuffled batches, the same for the same seed."""

    noisy: Tensor
    clean: Tensor
    batch_size: int = 256
    seed: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        random = torch.Generator().manual_seed(self.seed)
        for rows in torch.randperm(len(self.clean), generator=random).split(self.batch_size):
            yield self.noisy[rows], self.clean[rows]


def load(seed: int, batch_size: int, stride: int = 3) -> tuple[Patches, Patches]:
    """(train, test): left and right halves of the images, in grey, with noise of their own."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 (an extra)

    images = [torch.from_numpy(image.astype(np.float32).mean(-1) / 255) for image in load_sample_images().images]
    random = torch.Generator().manual_seed(seed)
    halves = []
    for left in (True, False):
        cut = [each[:, : each.shape[1] // 2] if left else each[:, each.shape[1] // 2 :] for each in images]
        step = stride if left else stride + 1
        clean = torch.cat([c.unfold(0, SIZE, step).unfold(1, SIZE, step).reshape(-1, SIZE * SIZE) for c in cut])
        noisy = clean + SIGMA * torch.randn(clean.shape, generator=random)
        halves.append(Patches(noisy, clean, batch_size, seed))
    return halves[0], halves[1]


def network(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, SIZE * SIZE)
    )


def fit(model: nn.Module, data: Patches, epochs: int, lr: float) -> Iterator[float]:
    """Adam, the rate falling as a cosine; yields the loss of each epoch."""
    steps = epochs * -(-len(data.clean) // data.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        total = 0.0
        for noisy, clean in dc.replace(data, seed=1000 * data.seed + epoch):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(noisy), clean)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(clean)
        yield total / len(data.clean)


@torch.no_grad()
def psnr(model: nn.Module, data: Patches) -> float:
    """dB, on all of the data at once."""
    return float(-10 * torch.log10((model.eval()(data.noisy) - data.clean).square().mean()))
