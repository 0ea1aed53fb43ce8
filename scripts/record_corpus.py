"""What the real argument parser and the real trainer do with tests/kohya/corpus: the cases for `real_outcomes.py`.

    python scripts/record_corpus.py CASES.json
    python scripts/real_outcomes.py CASES.json tests/kohya/corpus/outcomes.json       (by the harness's Python)

A .sh is run by bash, with `accelerate` replaced by a program that prints its words. The words of a .bat, a .ps1 and a
JSON of kohya_ss are those that `hina_kohya.check.reading` finds, since their shells and the GUI are not here. So that a
CPU can do it in seconds, size, number of steps and the way of computing attention are overridden.
"""

import json
import os
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hina_kohya.check.edit import toml_line
from hina_kohya.check.reading import read
from hina_kohya.check.reading.source import Source

CORPUS = Path(__file__).parents[1] / "tests" / "kohya" / "corpus"
PLACES = {
    "@SD15@": "{ASSETS}/sd_tiny", "@SDXL@": "{ASSETS}/sdxl_tiny", "@DATA@": "{ASSETS}/data",
    "@IMAGES@": "{ASSETS}/data/2_toy thing", "@OUT@": "{OUT}",
}  # fmt: skip
SMALL = ["--resolution", "64,64", "--min_bucket_reso", "64", "--max_bucket_reso", "128"]
USUAL = ["--tokenizer_cache_dir", "{ASSETS}/tokenizers", "--vae_batch_size", "1"]


def main(target: str) -> None:
    cases = json.loads((CORPUS / "cases.json").read_text(encoding="utf-8"))
    result = {name: _case(name, case) for name, case in cases.items()}
    Path(target).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _case(name: str, case: dict[str, Any]) -> dict[str, Any]:
    text = (CORPUS / name).read_text(encoding="utf-8")
    for mark, place in PLACES.items():
        text = text.replace(mark, place)
    text = text.replace("xformers = true", "sdpa = true").replace("--xformers", "--sdpa")
    files = {name: text} | ({"dataset.toml": _placed(case["dataset"])} if "dataset" in case else {})
    epochs = "max_train_epochs" in text and name.endswith(".toml")
    steps = (
        []
        if epochs or ("max_train_steps" not in text and "--max_train" not in text)
        else ["--max_train_steps", str(case.get("steps", 2))]
    )
    small = [] if "buckets" in case.get("keep", ()) else SMALL
    if name.endswith(".json"):  # the GUI writes a TOML of it
        files["gui.toml"] = _as_toml(name, text)
        words = ["--config_file", "{OUT}/gui.toml"]
    else:
        words = ["--config_file", f"{{OUT}}/{name}"] if name.endswith(".toml") else _words(name, text)
    return {"script": case["script"], "words": [*words, *USUAL, *steps, *small], "files": files}


def _placed(text: str) -> str:
    for mark, place in PLACES.items():
        text = text.replace(mark, place)
    return text


def _words(name: str, text: str) -> list[str]:
    if name.endswith(".txt"):
        return _after_script(shlex.split(text))
    if name.endswith(".sh"):
        return _after_script(_by_bash(text))
    return [*_read(name, text).words]


def _as_toml(name: str, text: str) -> str:
    values = _read(name, text).values
    return "".join(f"{toml_line(key, value)}\n" for key, value in values.items())


def _read(name: str, text: str) -> Source:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_text(text, encoding="utf-8")
        return read([str(file)])


def _by_bash(text: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        shim, script = Path(folder, "accelerate"), Path(folder, "run.sh")
        shim.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\n')
        shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
        script.write_text(text)
        environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
        return subprocess.run(
            ["bash", script], env=environment, capture_output=True, text=True, check=False
        ).stdout.split("\0")[:-1]


def _after_script(words: list[str]) -> list[str]:
    place = next(number for number, word in enumerate(words) if word.endswith(".py"))
    return words[place + 1 :]


if __name__ == "__main__":
    main(*sys.argv[1:])
