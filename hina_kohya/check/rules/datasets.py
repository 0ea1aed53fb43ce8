"""The file of dataset_config, by the tables that the trainer itself checks it with (ConfigSanitizer)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hina_kohya.check import placeholders
from hina_kohya.check.edit import Cell, Edit, drop, put
from hina_kohya.check.finding import Finding, error, warning
from hina_kohya.check.reading.load import load
from hina_kohya.check.rules import rule, rule_of
from hina_kohya.check.run import Run
from hina_kohya.text import nearest
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.trainer import Trainer

_EVIDENCE = "measured: voluptuous refuses it (ConfigSanitizer)"
_TYPES = {"str": str, "bool": bool, "int": int, "float": float, "dict": dict, "None": type(None)}
Table = Mapping[str, str]
Place = tuple[str | int, ...]
_PLACES = (
    "image_dir", "metadata_file", "conditioning_data_dir", "image_directory", "image_jsonl_file", "video_directory",
    "video_jsonl_file", "control_directory",
)  # fmt: skip


@rule_of(SD_SCRIPTS)
def dataset_ignores(run: Run) -> Iterator[Finding]:
    keys = [key for key in ("train_data_dir", "reg_data_dir", "in_json") if run.given(key)]
    if run.args["dataset_config"] and keys:
        yield warning(
            keys[0],
            "dataset_config is given, so it is ignored",
            f"said by sd-scripts ({at('NetworkTrainer.train')})",
            drop(*keys),
        )


@rule_of(SD_SCRIPTS)
def bucket_range(run: Run) -> Iterator[Finding]:
    """Without dataset_config, whose own resolution and buckets win."""
    sides = [int(side) for side in str(run.args["resolution"] or "").split(",") if side.strip().isdecimal()]
    if not sides or not run.on("enable_bucket") or run.args["dataset_config"]:
        return
    least, most = run.args["min_bucket_reso"], run.args["max_bucket_reso"]
    evidence = (
        f"measured: assertion while the images are read ({at('BaseDataset.adjust_min_max_bucket_reso_by_steps')})"
    )
    if isinstance(least, int) and least > min(sides):
        what = f"{least} is larger than the resolution, {min(sides)}"
        yield error("min_bucket_reso", what, evidence, put(min_bucket_reso=min(sides)))
    if isinstance(most, int) and most < max(sides):
        what = f"{most} is smaller than the resolution, {max(sides)}"
        yield error("max_bucket_reso", what, evidence, put(max_bucket_reso=max(sides)))


@rule
def dataset_unreadable(run: Run) -> Iterator[Finding]:
    value = run.given("dataset_config")
    file = Path(value) if value and not placeholders.is_one(value) else None
    if file is None or not file.is_file():
        return
    if not file.name.lower().endswith((".toml", ".json")):
        yield error(
            "dataset_config",
            f"{file.name} has to end in .toml or .json",
            f"ValueError ({run.at('load_user_config')})",
            None,
            "call it dataset.toml",
        )
        return
    if run.source.tables is not None:
        yield from dataset_findings(run.source.tables, run.schema.trainer, run.schema.datasets, file)
        return
    try:
        load(file)
    except UserError as mistake:
        yield error("dataset_config", str(mistake), "read with the same toml package")


def trainer_of_datasets(content: Mapping[str, Any]) -> Trainer:
    """sd-scripts' images are in subsets, musubi-tuner's in the datasets themselves."""
    datasets = [each for each in content["datasets"] if isinstance(each, dict)]
    own = (key.startswith(("image_", "video_")) and "subsets" not in each for each in datasets for key in each)
    return MUSUBI if any(own) else SD_SCRIPTS


def dataset_findings(
    content: Mapping[str, Any], trainer: Trainer, tables: Mapping[str, Table], file: Path
) -> Iterator[Finding]:
    general = _general(trainer, tables)
    datasets = content.get("datasets", [])
    for key in content:
        if key not in ("general", "datasets"):
            what = "outside [general] and [[datasets]] nothing is allowed"
            yield error(f"{file.name}: {key}", what, _EVIDENCE, _renamed_table(content, file, key))
    yield from _table(content.get("general", {}), general, f"{file.name} [general]", ("general",))
    if not datasets:
        what = "there is no [[datasets]] in it, so no image"
        yield error(f"{file.name}: datasets", what, "measured", advice="begin one with [[datasets]]")
    for number, (where, dataset) in enumerate(_numbered(datasets, f"{file.name} [[datasets]]")):
        path: Place = ("datasets", number)
        if trainer is MUSUBI:
            yield from _table(dataset, {**general, **_of_musubi(dataset, tables)}, where, path)
            yield from _images(dataset, where)
            continue
        rest = (
            {key: each for key, each in dataset.items() if key != "subsets"} if isinstance(dataset, dict) else dataset
        )
        yield from _table(rest, general, where, path)
        subsets = dataset.get("subsets", []) if isinstance(dataset, dict) else []
        for position, (place, subset) in enumerate(_numbered(subsets, f"{where} subset")):
            yield from _table(subset, _of_subset(subset, tables), place, (*path, "subsets", position))
            yield from _images(subset, place)


def _general(trainer: Trainer, tables: Mapping[str, Table]) -> Table:
    if trainer is MUSUBI:
        return _merged(tables, "dataset_ascendable")
    return _merged(
        tables, "dataset_ascendable", "subset_ascendable", "do_subset_ascendable", "db_subset_ascendable",
        "cn_subset_ascendable",
    )  # fmt: skip


def _of_musubi(dataset: Any, tables: Mapping[str, Table]) -> Table:
    table = dataset if isinstance(dataset, dict) else {}
    video = "video_directory" in table or "video_jsonl_file" in table
    return _merged(tables, "video_dataset_distinct" if video else "image_dataset_distinct")


def _numbered(tables: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Each table of a list with its place; whatever else stands there as one place."""
    if not isinstance(tables, list):
        yield where, tables
        return
    for number, table in enumerate(tables):
        yield f"{where} {number + 1}", table


def _of_subset(subset: Any, tables: Mapping[str, Table]) -> Table:
    subset = subset if isinstance(subset, dict) else {}
    kind = "cn" if "conditioning_data_dir" in subset else "ft" if "metadata_file" in subset else "db"
    own = [name for name in (f"{kind}_subset_distinct", f"{kind}_subset_ascendable") if f"{name}_schema" in tables]
    return _merged(tables, "subset_ascendable", "do_subset_ascendable", *own)


def _renamed_table(content: Mapping[str, Any], file: Path, key: str) -> Edit | None:
    """`[generall]` to `[general]`; anything else is taken out."""
    if nearest(key, ["general"]) and "general" not in content:
        return Edit(tables=(Cell(file.name, (), key, "general", content[key]),))
    return Edit(tables=(Cell(file.name, (), key),))


def _table(table: Any, schema: Table, where: str, path: Place) -> Iterator[Finding]:
    if not isinstance(table, dict):
        yield error(where, f"{table!r} is no table of keys and values", _EVIDENCE)
        return
    for key, value in table.items():
        if key not in schema:
            near = next((name for name in nearest(key, schema) if name not in table), "")
            fix = Edit(tables=(Cell(where, path, key, near, value),))
            yield error(f"{where}: {key}", "it is not known there, and the run stops", _EVIDENCE, fix)
        elif not any(_fits(kind, value) for kind in schema[key].rstrip("!").split("|")):
            types = schema[key].rstrip("!").replace("|", " or ")
            fix = _as(types, value)
            edit = None if fix is None else Edit(tables=(Cell(where, path, key, key, fix),))
            yield error(f"{where}: {key}", f"{value!r} is not of type {types}", _EVIDENCE, edit)
    for key, kind in schema.items():
        if kind.endswith("!") and key not in table:
            yield error(f"{where}: {key}", "it is required", _EVIDENCE, advice=f"name it: {key}")


def _fits(kind: str, value: Any) -> bool:
    if kind.startswith("pair of "):
        return isinstance(value, list) and len(value) == 2 and all(_fits(kind[8:], each) for each in value)
    if kind not in _TYPES:
        return True
    return isinstance(value, _TYPES[kind]) and not (isinstance(value, bool) and kind != "bool")


def _as(types: str, value: Any) -> Any:
    """The value converted, where that is plain."""
    try:
        number = float(value)
        return number if types.startswith("float") else int(number) if types[:3] == "int" else None
    except (TypeError, ValueError, OverflowError):
        return None


def _images(subset: Any, where: str) -> Iterator[Finding]:
    for key in _PLACES:
        value = subset.get(key) if isinstance(subset, dict) else None
        if isinstance(value, str) and not placeholders.is_one(value) and not Path(value).exists():
            yield error(f"{where}: {key}", f"{value} does not exist", "looked", advice="name a folder that is there")


def _merged(tables: Mapping[str, Table], *names: str) -> dict[str, str]:
    return {key: kind for name in names for key, kind in tables[f"{name}_schema"].items()}
