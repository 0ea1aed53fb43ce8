"""(c) Ways to adapt the frozen diffusion model at a mean adapter cost: each says what trains, and what a sample runs.

All adapters but MatryoshkaLoRA have scale 1 (alpha = rank), whatever acts of them; all sit on the same layers.
"""

import abc
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.convergence.task import generator

from .pairs import Cut, Pair, add_pairs

RANKS = (2, 4, 8)
TIMESTEPS = 1000


def layers_of(unet: nn.Module) -> dict[str, Any]:
    """Those that LyCORIS's preset attn-mlp adapts."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and ("attentions" in name or "time_embedding" in name)
    }


class Method(abc.ABC):
    """One adapter on one model. ``ranks``: those that one training is evaluated at.

    before and after: of a training step, after with the gradients still there; evaluate: before a forward that measures
    """

    def __init__(self, model: Any, rank: int, steps: int, seed: int):
        self.model, self.rank, self.steps, self.seed = model, rank, steps, seed
        self.layers = layers_of(model.unet)
        self.ranks: tuple[int, ...] = (rank,)
        self.made: Any = None
        self.make()

    @abc.abstractmethod
    def make(self) -> None: ...

    def parameters(self) -> list[Tensor]:
        return [p for pair in self.made for p in pair.parameters()]

    def before(self, step: int, timesteps: Tensor) -> None:  # noqa: B027 (most have nothing to do)
        pass

    def penalty(self) -> Tensor | float:
        return 0.0

    def after(self, step: int) -> None:  # noqa: B027
        pass

    def evaluate(self, rank: int, timesteps: Tensor) -> None:  # noqa: B027
        pass

    @abc.abstractmethod
    def kept(self, rank: int, timesteps: Tensor) -> dict[str, Tensor]:
        """Layer -> directions that each sample needs, [N] or []."""

    def stored(self) -> int:
        """Values in the file, at its smallest."""
        return sum(p.numel() for p in self.parameters())


class Pairs(Method):
    """Static LoRA; with `most` what the others change of it."""

    def most(self) -> int:
        return self.rank

    def make(self) -> None:
        self.cut = Cut()
        self.made: list[Pair] = add_pairs(self.layers, self.most(), self.cut, generator(self.seed, 7))

    def kept(self, rank: int, timesteps: Tensor) -> dict[str, Tensor]:
        return {name: torch.tensor(min(rank, pair.rank)) for name, pair in zip(self.layers, self.made, strict=True)}


class Nothing(Method):
    def make(self) -> None:
        self.made = []

    def kept(self, rank: int, timesteps: Tensor) -> dict[str, Tensor]:
        return {name: torch.tensor(0) for name in self.layers}


class DyLora(Pairs):
    """A random prefix every step, the same in all layers (arXiv 2210.07558); every rank is a prefix of one training."""

    def most(self) -> int:
        self.ranks = RANKS
        return max(RANKS)

    def before(self, step: int, timesteps: Tensor) -> None:
        self.cut.prefix = int(torch.randint(1, max(RANKS) + 1, (), generator=generator(self.seed, 5, step)))

    def evaluate(self, rank: int, timesteps: Tensor) -> None:
        self.cut.prefix = rank


class Matryoshka(DyLora):
    """A fixed diagonal in training: the mean over RANKS of the prefixes of each rank, in one forward (2605.07850).

    A prefix has the strength 1 / sqrt(rank), here in units of that of the middle rank, as in its authors' runs.
    """

    def _strength(self, rank: int) -> Tensor:
        place = torch.arange(max(RANKS))
        return (place < rank) * (RANKS[len(RANKS) // 2] / rank) ** 0.5

    def before(self, step: int, timesteps: Tensor) -> None:
        self.cut.scale, self.cut.prefix = torch.stack([self._strength(rank) for rank in RANKS]).mean(0), None

    def evaluate(self, rank: int, timesteps: Tensor) -> None:
        self.cut.scale, self.cut.prefix = self._strength(rank), rank


class TLora(Pairs):
    """The first r(t) of twice the mean rank, falling linearly from all at no noise to one (arXiv 2507.05964).

    Without its orthogonal start, whose frozen copy doubles cost and file.
    """

    def most(self) -> int:
        return 2 * self.rank

    def at(self, timesteps: Tensor) -> Tensor:
        return ((TIMESTEPS - timesteps) / TIMESTEPS * (2 * self.rank - 1)).long() + 1

    def before(self, step: int, timesteps: Tensor) -> None:
        self.cut.ranks = self.at(timesteps)

    def evaluate(self, rank: int, timesteps: Tensor) -> None:
        self.cut.ranks = self.at(timesteps)

    def kept(self, rank: int, timesteps: Tensor) -> dict[str, Tensor]:
        return dict.fromkeys(self.layers, self.at(timesteps))


class AdaLora(Method):
    """peft's: from 1.5 times the rank down to it as a mean over layers, by sensitivity; kept orthogonal as it asks."""

    def make(self) -> None:
        from peft import AdaLoraConfig, get_peft_model  # noqa: PLC0415

        first, self.name = round(1.5 * self.rank), "default"
        torch.manual_seed(self.seed)
        config = AdaLoraConfig(
            target_modules=list(self.layers),
            init_r=first,
            target_r=self.rank,
            lora_alpha=first,
            tinit=self.steps // 10,
            tfinal=2 * self.steps // 5,
            deltaT=max(1, self.steps // 40),
            total_step=self.steps,
        )
        self.made: Any = get_peft_model(self.model.unet, config)
        self.weight = config.orth_reg_weight

    def parameters(self) -> list[Tensor]:
        return [p for p in self.made.parameters() if p.requires_grad]

    def penalty(self) -> Tensor:
        """What peft adds to a loss that it can see; a U-Net's output has none."""
        parts = []
        for name, p in self.made.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = p @ p.T if "lora_A" in name else p.T @ p
                parts.append((gram - torch.eye(len(gram))).norm())
        return self.weight * torch.stack(parts).mean()

    def after(self, step: int) -> None:
        self.made.base_model.update_and_allocate(step + 1)

    def _ranks(self) -> dict[str, int]:
        return {name: int((self.made.base_model.model.get_submodule(name).lora_E[self.name] != 0).sum())
                for name in self.layers}  # fmt: skip

    def kept(self, rank: int, timesteps: Tensor) -> dict[str, Tensor]:
        return {name: torch.tensor(rank) for name, rank in self._ranks().items()}

    def stored(self) -> int:
        return sum(
            rank * (1 + sum(self.made.base_model.model.get_submodule(name).base_layer.weight.shape[:2]))
            for name, rank in self._ranks().items()
        )


class Ours(Method):
    """`--network_module hina_kohya.adlrns` with DIRECTIONS times the mean rank to choose from, in a budget of MACs."""

    DIRECTIONS = 2  # as by default, and as many as T-LoRA stores

    def arguments(self) -> tuple[int, list[str]]:
        """(network_dim, network_args besides the preset)"""
        often = min(50, max(1, self.steps // 16))  # 50 is the default; shorter runs need refreshes, too
        words = (
            f"bins=6 budget={self.rank} budget_unit=macs mode=spend r_min=0 warmup={3 * self.steps // 8} "
            f"refresh_every={often}"
        )
        return self.DIRECTIONS * self.rank, words.split()

    def make(self) -> None:
        from hina_kohya.demo import network  # noqa: PLC0415
        from hina_kohya.demo.settings import Settings  # noqa: PLC0415

        most, words = self.arguments()
        settings = Settings(
            network_module="hina_kohya.adlrns",
            network_dim=most,
            network_alpha=most,
            network_args=["preset=attn-mlp", *words],
            network_train_unet_only=True,
        )
        torch.manual_seed(self.seed)
        names = {id(layer): name for name, layer in self.layers.items()}
        self.made: Any = network.create(settings, self.model).train()
        self.modules = {names[id(lora.org_module[0])]: lora for lora in self.made.adlrns_modules()}

    def parameters(self) -> list[Tensor]:
        return [p for p in self.made.parameters() if p.requires_grad]

    def before(self, step: int, timesteps: Tensor) -> None:
        self.made.train()
        self.made.on_step_start(self.model.text_encoder, self.model.unet)

    def evaluate(self, rank: int, timesteps: Tensor) -> None:
        self.made.eval()

    def kept(self, rank: int, timesteps: Tensor) -> dict[str, Tensor]:
        states = (timesteps * self.made.settings.bins // TIMESTEPS).long()
        return {name: lora.adlrns_kept.sum(1)[states] for name, lora in self.modules.items()}


METHODS: dict[str, type[Method]] = {
    "none": Nothing,
    "lora": Pairs,
    "dylora": DyLora,
    "matryoshka": Matryoshka,
    "tlora": TLora,
    "adalora": AdaLora,
    "adlrns": Ours,
}
NESTED = ("dylora", "matryoshka")  # one training serves all ranks
