"""A small residual network of dynamic convolutions, for images of real data sets."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .module import DynamicLowRankLayer


def adlrns_resnet(
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    r_min: int = 4,
    r_max: int = 64,
    scorer_hidden: int = 0,
    num_gate_blocks: int = 0,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 1,
    dense: bool = False,
) -> "ResNet":
    """``model(images) -> logits``, images [N, channels, image_size, image_size], logits [N, classes].

    r_min, r_max, scorer_hidden, num_gate_blocks : of each `DynamicLowRankLayer`; ranks that are above a layer's full
        rank are its full rank
    widths, blocks : channels of each stage, and residual blocks of each
    dense          : ordinary convolutions instead, to compare with

    The first convolution brings images to about 16 x 16, so that the cost hardly depends on ``image_size``. It, the
    1 x 1 convolutions of the shortcuts and the classifier are dense. Raises ValueError for sizes below 1.
    """
    sizes = {"classes": classes, "channels": channels, "image_size": image_size, "blocks": blocks}
    small = [f"{name} = {value}" for name, value in [*sizes.items(), *(("width", w) for w in widths)] if value < 1]
    if small or not widths:
        raise ValueError(f"{', '.join(small) or 'widths = ()'}: each must be at least 1")

    def convolution(inside: int, outside: int, stride: int) -> nn.Module:
        if dense:
            return nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        most = min(r_max, 9 * inside, outside)
        return DynamicLowRankLayer(
            inside,
            outside,
            most,
            min(r_min, most),
            scorer_hidden=scorer_hidden,
            num_gate_blocks=num_gate_blocks,
            kernel_size=(3, 3),
            stride=stride,
            padding=1,
        )

    stages: list[nn.Module] = []
    inside = widths[0]
    for number, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if number and not block else 1
            stages.append(
                Block(inside, width, stride, convolution(inside, width, stride), convolution(width, width, 1))
            )
            inside = width
    step = max(1, image_size // 16)
    side = max(3, step)
    stem = nn.Conv2d(channels, widths[0], side, step, (side - step + 1) // 2, bias=False)
    return ResNet(stem, widths[0], stages, nn.Linear(inside, classes))


class ResNet(nn.Module):
    def __init__(self, stem: nn.Conv2d, width: int, stages: list[nn.Module], head: nn.Linear):
        super().__init__()
        self.stem, self.norm, self.stages, self.head = stem, nn.BatchNorm2d(width), nn.Sequential(*stages), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Block(nn.Module):
    """x + f(x) of two convolutions; a 1 x 1 convolution of x where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second
        self.norm1, self.norm2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        self.shortcut = None
        if stride != 1 or inside != outside:
            self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(_output(self.first(x))))
        y = self.norm2(_output(self.second(y)))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def _output(y: "Tensor | tuple[Tensor, float]") -> Tensor:
    """Without the rank that a dynamic layer gives beside it."""
    return y[0] if isinstance(y, tuple) else y
