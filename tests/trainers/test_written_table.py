"""docs/trainers.md says what tests/trainers found: all columns, all trainers, and nothing that does not work."""

import importlib.util
import re

from tests.support import runs


def script():
    spec = importlib.util.spec_from_file_location("trainers_script", runs.ROOT / "scripts" / "trainers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_test_has_a_column_and_an_explanation():
    text = "".join(
        (runs.ROOT / "tests" / "trainers" / f"test_{name}.py").read_text() for name in ("trainers", "configs")
    )
    columns = script().COLUMNS
    assert set(re.findall(r"^def (test_\w+)", text, re.MULTILINE)) == set(columns)
    page = (runs.ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
    for title in columns.values():
        assert f"\n| {title} | " in page


def test_the_table_has_every_trainer_and_no_failure():
    module = script()
    page = module.PAGE.read_text(encoding="utf-8").partition(module.BEGIN)[2].partition(module.END)[0]
    assert set(module.KINDS) == set(runs.KINDS)
    for release, kinds in {
        "sd-scripts 0.10": ("sd", "sdxl", "sd3", "flux", "lumina", "anima", "hunyuan_image"),
        "sd-scripts 0.11": ("sd", "sdxl", "sd3", "flux", "lumina", "anima", "hunyuan_image"),
        "musubi-tuner 0.3": ("wan", "qwen_image", "zimage"),
    }.items():
        for kind in kinds:
            (row,) = re.findall(rf"^\| {re.escape(module.KINDS[kind])}, {re.escape(release)}.*$", page, re.MULTILINE)
            assert module.PASSED in row
    assert module.FAILED not in page
    assert ", 0 failed;" in page


def test_failures_and_gaps_are_seen_in_the_table():
    module = script()
    result = {"family": "sd-scripts", "release": "9", "commit": "abc", "seconds": 60.0}
    results = [
        {**result, "kind": "sd", "test": "test_lokr", "outcome": "failed"},
        {**result, "kind": "sd", "test": "test_readme", "outcome": "passed"},
        {**result, "kind": "sdxl", "test": "test_lokr", "outcome": "skipped"},
    ]
    *_, row = module.table(results).splitlines()
    cells = ["", "**no**", *[""] * 8, "yes", *[""] * (len(module.COLUMNS) - 11)]
    assert row == f"| SD 1.x, sd-scripts 9 | {' | '.join(cells)} |"
