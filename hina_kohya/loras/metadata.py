"""What a file says about its training, carried over; what is no longer true, corrected.

As sd-scripts' own resizer does: `ss_network_dim` and `ss_network_alpha` become the new ones, or "Dynamic" where modules
differ, the comment says what was done, and the `sshs_` hashes are computed anew. The old network settings move to
`hina_resize`, which also has the line of what was done.
"""

import json
from collections.abc import Sequence

from hina_kohya.loras.reading import AdapterFile
from hina_kohya.loras.writing import LEGACY_HASH, MODEL_HASH

RECORD = "hina_resize"
AVERAGE = "hina_average"  # of files that are a mean of others, or of a training's steps
_NETWORK = ("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")
_SIZES = ("ss_network_dim", "ss_network_alpha")
# sd-scripts' modules for the families that `networks.lora` does not know, by the start of ss_base_model_version.
_MODULES = {
    "flux": "networks.lora_flux",
    "sd3": "networks.lora_sd3",
    "lumina": "networks.lora_lumina",
    "anima": "networks.lora_anima",
    "hunyuan-image": "networks.lora_hunyuan_image",
}


def carried(files: Sequence[AdapterFile]) -> dict[str, str]:
    """What all files say alike."""
    first = files[0].metadata
    return {key: value for key, value in first.items() if all(file.metadata.get(key) == value for file in files[1:])}


def corrected(files: Sequence[AdapterFile], ranks: Sequence[int], line: str, dora: bool, kohya: bool) -> dict[str, str]:
    """The metadata of a LoRA of these ranks.

    line : what was done
    dora : modules have magnitudes
    kohya: the file has kohya's names, so that its `ss_` keys and hashes are read
    """
    metadata = carried(files)
    record = {"done": line} | {key: metadata.pop(key) for key in _NETWORK if key in metadata}
    metadata = {key: value for key, value in metadata.items() if not key.startswith("sshs_")}
    metadata.pop("lora_adapter_metadata", None)
    metadata |= {"format": "pt", RECORD: json.dumps(record, ensure_ascii=False)}
    if kohya or any(key.startswith("ss_") for key in metadata):
        size = str(ranks[0]) if len(set(ranks)) == 1 else "Dynamic"
        comment = metadata.get("ss_training_comment", "")
        metadata |= {
            "ss_network_module": _module(record.get("ss_network_module", ""), metadata, dora),
            **dict.fromkeys(_SIZES, size),
            "ss_training_comment": f"{line}; {comment}" if comment else line,
        }
        if dora:
            metadata["ss_network_args"] = json.dumps({"algo": "lora", "dora_wd": "True"})
    if kohya:
        metadata |= {MODEL_HASH: "0" * 64, LEGACY_HASH: "0" * 8}  # computed while writing
    return metadata


def _module(module: str, metadata: dict[str, str], dora: bool) -> str:
    if dora:
        return "lycoris.kohya"
    if module.startswith("networks.lora"):  # also musubi-tuner's lora_wan and its others
        return module.replace("networks.lora_fa", "networks.lora")
    version = metadata.get("ss_base_model_version", "")
    return next((name for start, name in _MODULES.items() if version.startswith(start)), "networks.lora")
