"""The table of docs/trainers.md, from the results that tests/trainers left in a folder.

python scripts/trainers.py FOLDER
"""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "trainers.md"
BEGIN, END = "<!-- written by scripts/trainers.py -->\n", "<!-- end -->\n"
KINDS = {
    "sd": "SD 1.x", "sdxl": "SDXL", "sd3": "SD3", "flux": "FLUX.1", "lumina": "Lumina 2", "anima": "Anima",
    "hunyuan_image": "HunyuanImage", "wan": "Wan", "qwen_image": "Qwen-Image", "zimage": "Z-Image",
}  # fmt: skip
# Tests and their columns.
COLUMNS = {
    "test_native_network_and_resume": "native, resume", "test_lokr": "LoKr", "test_launcher_with_loha": "LoHa",
    "test_hina_kohya_launch_with_dora": "DoRA", "test_patch": "patch", "test_adlrns_chooses_ranks": "ADLRNS",
    "test_adlrns_and_its_export": "ADLRNS, bins",
    "test_networks_lokr_and_loha": "own LoKr, LoHa", "test_presets": "presets", "test_shipped_configs": "configs",
    "test_readme": "README", "test_a_rate_that_is_found": "HinaAuto",
    "test_scalars": "scalars", "test_best_and_early_end": "best, early end", "test_averages": "averages",
    "test_calibrated_resize": "calibrated resize", "test_a_small_alpha": "small alpha",
}  # fmt: skip
PASSED, FAILED, NONE = "yes", "**no**", ""
SAID = {"passed": PASSED, "failed": FAILED, "skipped": NONE}


def table(results: list[dict]) -> str:
    """Markdown: a row a trainer, a column a test; nothing where a test is not for that trainer."""
    cells = {(each["family"], each["release"], each["kind"], each["test"]): SAID[each["outcome"]] for each in results}
    releases = sorted({(family, release) for family, release, *_ in cells}, key=lambda pair: (pair[0], pair[1]))
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for family, release in reversed(releases):
        for kind, name in KINDS.items():
            row = [cells.get((family, release, kind, test), NONE) for test in COLUMNS]
            if any(row):
                lines.append(f"| {name}, {family} {release} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def heading(results: list[dict]) -> str:
    checkouts = sorted(
        {f"{each['family']} {each['release']} ({each['commit'] or 'no commit known'})" for each in results}
    )
    count, failed = (sum(each["outcome"] in words for each in results) for words in (("passed", "failed"), ("failed",)))
    words = f"{datetime.date.today()}: {', '.join(checkouts)}; {_versions()}. {count} tests"
    return f"{words}, {failed} failed.\n"


def _versions() -> str:
    """Of what the trainers run with, in the harness."""
    python = Path(os.environ.get("HARNESS_DIR", Path.home() / ".cache" / "hina-harness")) / "venv" / "bin" / "python"
    names = ("torch", "accelerate", "transformers", "lycoris-lora")
    code = f"from importlib.metadata import version; print(*(n + ' ' + version(n) for n in {names}), sep=', ')"
    return subprocess.run([python, "-c", code], check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def main(folder: str) -> None:
    results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    if unknown := {each["test"] for each in results} - set(COLUMNS):
        raise SystemExit(f"{', '.join(sorted(unknown))}: no column in {__file__}")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{heading(results)}\n{table(results)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
