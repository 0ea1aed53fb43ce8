"""`algo=adlrns` in LyCORIS 3.4 and 4.x, at run time; registering twice is registering once."""

import logging
from typing import Any

from hina_kohya.adlrns.adapter.arguments import NAMES

logger = logging.getLogger("hina_kohya")

NAME = "adlrns"


def register() -> None:
    """Into LyCORIS's table of algorithms, its detectors of files and its descriptions."""
    from lycoris import modules, wrapper  # noqa: PLC0415 (LyCORIS is heavy, and none of it is needed to read arguments)
    from lycoris.modules import base  # noqa: PLC0415

    from hina_kohya.adlrns.adapter.module import AdlrnsModule  # noqa: PLC0415

    if wrapper.network_module_dict.get(NAME) is make:
        return
    wrapper.network_module_dict[NAME] = make
    # In front: LoCon's detector is `lora_up.weight`, which our files have, too. Ours is a key that no other file has.
    modules.MODULE_LIST.insert(0, AdlrnsModule)
    if hasattr(base, "_FP8_BYPASS_ALGOS"):
        base._FP8_BYPASS_ALGOS = frozenset({*base._FP8_BYPASS_ALGOS, NAME})
    _describe()


def make(*args: Any, **kwargs: Any) -> Any:
    """A module of the network that is being made, as LyCORIS calls for one: with one state it is LoCon's."""
    from hina_kohya.adlrns.adapter.module import MAKING, AdlrnsModule  # noqa: PLC0415 (as in `register`)
    from hina_kohya.adlrns.adapter.plain_module import PlainModule  # noqa: PLC0415

    states = MAKING.get()
    return (PlainModule if states is None or states.count == 1 else AdlrnsModule)(*args, **kwargs)


def _describe() -> None:
    try:
        from lycoris.config_sdk import ALGO_REGISTRY, AlgoSpec  # noqa: PLC0415 (not before LyCORIS 3.4)
    except ImportError:
        return
    arguments: Any = ("dim", "alpha", "dropout", "rank_dropout", "module_dropout", "rs_lora")
    ALGO_REGISTRY[NAME] = AlgoSpec(
        name=NAME,
        description="LoRA whose ranks are chosen while it trains, within a budget of bytes (hina-kohya).",
        supported_args=arguments,
        notes=f"For the whole network, in network_args: {', '.join(NAMES)}.",
    )
