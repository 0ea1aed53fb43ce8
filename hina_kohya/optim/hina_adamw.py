"""HinaAdamW: AdamW for adapters, with each technique of its family as a switch."""

from hina_kohya.optim.family import Family


class HinaAdamW(Family):
    """AdamW that knows what a LoRA is: LoRA-Muon for its pairs, Adam with Cautious for the rest.

    With every technique off it is torch.optim.AdamW, bit for bit.

    Example::

        HinaAdamW(network.parameters(), lr=1e-3, use_tam=True, state="8bit")
        HinaAdamW(network.named_parameters(), preset="lokr")
        # sd-scripts: --optimizer_type hina_kohya.HinaAdamW --optimizer_args "preset='lokr'" "use_tam=True"
    """

    overrides = {"use_lora_muon": True}


class HinaAuto(HinaAdamW):
    """HinaAdamW that finds its learning rate: give 1, as to Prodigy.

    Example::

        HinaAuto(network.named_parameters())
        # sd-scripts: --optimizer_type hina_kohya.HinaAuto --learning_rate 1
    """

    overrides = {"use_auto_lr": True, "rank_free_lr": True}
