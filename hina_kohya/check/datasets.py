"""The datasets of a run: its options and its dataset file merged, as the trainer's BlueprintGenerator merges them."""

import dataclasses as dc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# ConfigSanitizer.ARGPARSE_OPTNAME_TO_CONFIG_OPTNAME
_OF_ARGS = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl")


@dc.dataclass(frozen=True)
class Subset:
    """where: how a message calls it; own: its own keys; fallbacks: tables for the keys that it lacks, nearest first"""

    where: str
    own: Mapping[str, Any]
    fallbacks: tuple[Mapping[str, Any], ...]

    def get(self, key: str) -> Any:
        """The first that is not None counts (BlueprintGenerator.search_value)."""
        return next((table[key] for table in (self.own, *self.fallbacks) if table.get(key) is not None), None)

    @property
    def folder(self) -> Path | None:
        value = self.get("image_dir")
        return Path(value) if isinstance(value, str) and Path(value).is_dir() else None

    def endings(self) -> set[str]:
        """Of the first few hundred files in its folder."""
        if self.folder is None:
            return set()
        files = (each for _, each in zip(range(300), self.folder.iterdir(), strict=False))
        return {each.suffix.lower() for each in files}

    @property
    def has_images(self) -> bool:
        return bool(self.endings() & {*_IMAGES})


@dc.dataclass(frozen=True)
class Dataset:
    where: str
    own: Mapping[str, Any]
    fallbacks: tuple[Mapping[str, Any], ...]
    subsets: tuple[Subset, ...]

    def get(self, key: str) -> Any:
        return next((table[key] for table in (self.own, *self.fallbacks) if table.get(key) is not None), None)


def datasets_of(tables: Mapping[str, Any] | None, args: Mapping[str, Any]) -> tuple[Dataset, ...]:
    """Of a dataset file, or of train_data_dir where there is none; what is no table is left out (a rule says so)."""
    run = {**args, **{name: args.get(option) for name, option in _OF_ARGS.items()}}
    if tables is not None:
        general = _table(tables.get("general"))
        return tuple(
            _dataset(f"[[datasets]] {number}", each, (general, run))
            for number, each in enumerate(_list(tables.get("datasets")), 1)
        )
    if args.get("dataset_config"):
        return ()
    folders = [("train_data_dir", args.get("train_data_dir")), ("reg_data_dir", args.get("reg_data_dir"))]
    subsets = [
        Subset(str(each), {"image_dir": str(each)}, (run,))
        for name, folder in folders if isinstance(folder, str)
        for each in _with_repeats(Path(folder))
    ]  # fmt: skip
    return (Dataset("the run", {}, (run,), tuple(subsets)),) if subsets else ()


def _dataset(where: str, table: Mapping[str, Any], fallbacks: tuple[Mapping[str, Any], ...]) -> Dataset:
    own = {key: value for key, value in table.items() if key != "subsets"}
    subsets = tuple(
        Subset(f"{where} subset {number}", each, (own, *fallbacks))
        for number, each in enumerate(_list(table.get("subsets")), 1)
    )
    # musubi-tuner's datasets have no subsets: each is its own.
    return Dataset(where, own, fallbacks, subsets or (Subset(where, own, fallbacks),))


def _with_repeats(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (
            each for each in sorted(folder.iterdir()) if each.is_dir() and each.name.partition("_")[0].isdecimal()
        )


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
