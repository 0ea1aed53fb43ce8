"""A site-packages and a checkout of one's own for tests of the patches, so that the real ones are never touched."""

import importlib.metadata
import sys
from pathlib import Path

from hina_kohya.patch import block, targets
from hina_kohya.patch.targets import LYCORIS, Target

GET_OPTIMIZER = "def get_optimizer(args, trainable_params): ...\n"


def published() -> bytes:
    """kohya.py of the installed LyCORIS, as published; a patched one would make these tests say nothing."""
    data = Path(str(importlib.metadata.distribution("lycoris-lora").locate_file("lycoris/kohya.py"))).read_bytes()
    assert not block.lines_of_ours(data), "the installed LyCORIS is patched"
    return data


def make_site(root: Path, data: bytes, version: str = "4.1.3") -> Path:
    """The file to patch, in a site-packages with the metadata of that release."""
    file = root / "lycoris" / "kohya.py"
    file.parent.mkdir(parents=True)
    (file.parent / "__init__.py").touch()
    file.write_bytes(data)
    metadata = root / f"lycoris_lora-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: lycoris-lora\nVersion: {version}\n")
    return file


def make_checkout(root: Path) -> Path:
    """The file to patch, in what looks like sd-scripts."""
    for name in ("train_network.py", "library/train_util.py", "library/__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "library" / "train_util.py").write_text(GET_OPTIMIZER)
    return root / "library" / "__init__.py"


def use(root: Path, version: str | None = "4.1.3") -> None:
    """From now on LyCORIS is found there. For a process that ends soon; in a test: monkeypatch `find_lycoris`."""
    targets.find_lycoris = lambda: Target(LYCORIS, root, version, sys.executable)
