"""COptim: the Cautious optimizer, its strictness set by how well the gradient agrees with its past."""

from hina_kohya.optim.automagic_cameamp import PROFILES
from hina_kohya.optim.family import Family


class COptim(Family):
    """The Cautious optimizer, less strict while gradients agree with momenta of several time scales.

    With ``use_context=False`` it is Cautious AdamW, C-AdamW.

    Example::

        COptim(network.named_parameters(), lr=1e-3, momentum_scales=(1, 10, 100))
        # sd-scripts: --optimizer_type hina_kohya.COptim --optimizer_args "context_window=100"
    """

    overrides = {"lr": 1e-4, "state": "fp32"}
    profiles = PROFILES


class COptim8bit(COptim):
    """COptim with all averages in 8 bits: about 1.3 bytes of state a parameter of a LoRA of rank 16.

    Example::

        COptim8bit(network.named_parameters(), lr=1e-3)
    """

    fixed = {"state": "8bit"}
