"""Run as a script by the Python that trains: a staged copy is imported as the module it will be, and makes groups.

Nothing of this package is imported here, since that Python may lack it: the copy imports it where it can.
"""

import importlib
import importlib.abc
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import Any

OUTCOME = "outcome of the trial: "
DECAY = 0.125


class Copies(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Finds modules at their places and reads them elsewhere, past any compiled file.

    `sources`: name -> (place, source)
    """

    def __init__(self, sources: dict[str, tuple[Path, Path]]):
        self.sources = sources

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname not in self.sources:
            return None
        place = self.sources[fullname][0]
        folders = [str(place.parent)] if place.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(fullname, place, loader=self, submodule_search_locations=folders)

    def get_filename(self, fullname: str) -> str:
        return str(self.sources[fullname][0])

    def get_data(self, path: Any) -> bytes:
        return next(source for place, source in self.sources.values() if str(place) == path).read_bytes()


def main(target: str, root: Path, file: str, staged: Path) -> str:
    name = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    top = name.partition(".")[0]
    # The top package, too: another one of that name may be nearer on this path.
    places = {top: (root / top / "__init__.py",) * 2, name: (root / file, staged)}
    sys.meta_path.insert(0, Copies(places))
    sys.path.insert(0 if target == "sd-scripts" else len(sys.path), str(root))
    module = importlib.import_module(name)
    hooked = b"hina_kohya" in staged.read_bytes() and importlib.util.find_spec("hina_kohya") is not None
    hooks = getattr(module, "_hina_hooks", None)
    if hooked and (hooks is None or not hooks.active()):
        raise SystemExit(f"the hooks are not active after importing {name}")
    outcome = "imported, hooks active" if hooked else "imported, without hooks"
    if target == "sd-scripts":  # whose networks are made elsewhere
        try:
            module = importlib.import_module("networks.lora")
        except ImportError as error:
            return f"{outcome}; groups were not tried, since networks.lora does not import here: {error}"
    return f"{outcome}, {groups(module, hooked)}"


def groups(module: Any, hooked: bool) -> str:
    """How many parameters a small network hands to an optimizer. Exits where one is missing, twice, or nameless."""
    from torch import nn  # noqa: PLC0415 (only where the import went well)

    class Transformer2DModel(nn.Sequential):
        """Of the name that presets look for; so is the other."""

    class CLIPAttention(nn.Sequential): ...

    unet = nn.Sequential(Transformer2DModel(nn.Linear(16, 32), nn.Linear(32, 16)))
    text_encoder = nn.Sequential(CLIPAttention(nn.Linear(16, 16)))
    arguments = {"algo": "lokr", "factor": "4"} | ({"weight_decay": str(DECAY)} if hooked else {})
    network = module.create_network(1.0, 2, 1.0, None, text_encoder, unet, **arguments)
    network.apply_to(text_encoder, unet, True, True)
    # Of the text encoder, of the U-Net, and in newer ones of the rest.
    rates = len(inspect.signature(type(network).prepare_optimizer_params).parameters) - 1
    result = network.prepare_optimizer_params(*[1e-3] * min(rates, 3))
    param_groups = [{**group, "params": list(group["params"])} for group in unpaired(result)]
    items = [item for group in param_groups for item in group["params"]]
    params = [id(item[1] if isinstance(item, tuple) else item) for item in items]
    expected = {id(param) for param in network.parameters() if param.requires_grad}
    if not params or len(params) != len(expected) or set(params) != expected:
        raise SystemExit(f"{len(expected)} parameters are to be trained, and {len(params)} are in the groups")
    named = all(isinstance(item, tuple) for item in items)
    if hooked and not (named and any(group.get("weight_decay") == DECAY for group in param_groups)):
        raise SystemExit("the hooks did not name the parameters and set the weight_decay of network_args")
    return f"{len(params)} parameters in {len(param_groups)} group{'s' * (len(param_groups) != 1)}"


def unpaired(result: Any) -> Any:
    """Groups without their descriptions."""
    return result[0] if isinstance(result, tuple) else result


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))  # whose files are no modules of that name
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    print(OUTCOME + main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
