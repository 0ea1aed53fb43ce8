import dataclasses as dc
import math

import torch

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.parameters.roles import Kind, Member


@register
@dc.dataclass(frozen=True)
class SpatialFrequency(Technique):
    r"""Damps the high spatial frequencies in the gradient of each convolution kernel.

    .. math:: G = \mathcal F(g), \quad
              G_f \leftarrow G_f \big(1 - \text{penalty}\,\tfrac{f - \text{preserve}}{1 - \text{preserve}}\big)
              \text{ where } f > \text{preserve}, \quad g \leftarrow \mathcal F^{-1}(G)

    F is the Fourier transform over the two kernel axes; f is the radial frequency over the highest one that a kernel of
    this size has, so 3 x 3 kernels know 0, 0.71 and 1.

    Shapes: g [N, m, n] as [N, m n / (kh kw), kh kw]; f [kh, kw // 2 + 1]; what is taken is g T, T [kh kw, kh kw].
    Source: a linear low-pass filter; no paper. The names are those of the fork's `frequency_penalty` and
    `detail_preservation`.
    Differs: the fork transforms over channels, whose order means nothing; here channels may be permuted.
    Cost: no state; one product with T. Only what is [out, in, kh, kw] with kh kw > 1 has it, never rotations.
    """

    name, stage, pads = "spatial_frequency", Stage.GRADIENT, False
    needs = "a convolution with a kernel larger than 1 x 1"
    preserve: float = hyper(0.8, "[0, 1)", doc="frequencies up to this one are left alone; 1 is the highest")
    penalty: float = hyper(0.05, "[0, 1]", doc="share of the highest frequency that is taken away")
    height: int = hyper(1, "[1, inf)", doc="rows of the kernel; set by itself")
    width: int = hyper(1, "[1, inf)", doc="columns of the kernel; set by itself")

    def fit(self, member: Member) -> "SpatialFrequency | None":
        linear = member.role.kind in (Kind.FACTOR, Kind.DENSE, Kind.REGULAR)
        if not linear or len(member.shape) != 4 or math.prod(member.shape[2:]) == 1:
            return None
        return dc.replace(self, height=member.shape[2], width=member.shape[3])

    def apply(self, s: Signal, state: State) -> Signal:
        height, width, size = self.height, self.width, self.height * self.width
        exact = {"dtype": torch.float64, "device": s.grad.device}
        f = torch.hypot(torch.fft.fftfreq(height, **exact)[:, None], torch.fft.rfftfreq(width, **exact))
        highest = math.hypot(height // 2 / height, width // 2 / width) or 1.0
        damping = ((f / highest - self.preserve) * (self.penalty / (1 - self.preserve))).clamp_(min=0)
        # The filter is linear, so it is enough to transform the unit kernels: a tenth of the time of all kernels.
        spectra = torch.fft.rfft2(torch.eye(size, **exact).view(size, height, width)).mul_(damping)
        taken = torch.fft.irfft2(spectra, s=(height, width)).flatten(1).to(s.grad.dtype)  # [kh kw, kh kw]
        kernels = s.grad.unflatten(-1, (-1, size)).flatten(1, 2)  # [N, m n / (kh kw), kh kw]
        left = torch.baddbmm(kernels, kernels, taken.expand(len(kernels), -1, -1), alpha=-1)
        return s.but(grad=left.view_as(s.grad))
