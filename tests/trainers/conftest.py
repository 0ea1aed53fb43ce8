"""`subject`: a real trainer of a real checkout, by name; all of them with the paths that scripts/trainers.sh sets.

SD_SCRIPTS_HOMES, MUSUBI_HOMES: checkouts, separated by os.pathsep, each as PATH or PATH@COMMIT. HINA_TRAINERS: a folder
for the results, one JSON file a test, from which scripts/trainers.py makes the table. Without these nothing runs here.
"""

import dataclasses as dc
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support import runs

SD_SCRIPTS, MUSUBI = "sd-scripts", "musubi-tuner"
SD_KINDS = ("sd", "sdxl", "flux", "sd3", "anima", "lumina", "hunyuan_image")
MUSUBI_KINDS = ("zimage", "wan", "qwen_image")


@dc.dataclass(frozen=True)
class Checkout:
    family: str
    home: Path
    commit: str
    release: str

    @classmethod
    def of(cls, family, words):
        path, _, commit = words.partition("@")
        home = Path(path).resolve()
        file, pattern = {
            SD_SCRIPTS: ("README.md", r"\*\*Version (\d[\d.]*)"),
            MUSUBI: ("pyproject.toml", r'^version = "([\d.]+)"'),
        }[family]
        found = re.search(pattern, (home / file).read_text(encoding="utf-8"), re.MULTILINE)
        return cls(family, home, commit, found[1] if found else "unknown")


def checkouts():
    variables = {SD_SCRIPTS: "SD_SCRIPTS_HOMES", MUSUBI: "MUSUBI_HOMES"} if os.environ.get("HINA_TRAINERS") else {}
    return [
        Checkout.of(family, words)
        for family, variable in variables.items()
        for words in os.environ.get(variable, "").split(os.pathsep)
        if words
    ]


CHECKOUTS = checkouts()
SUBJECTS = {
    f"{kind}-{checkout.release}": (kind, checkout)
    for checkout in CHECKOUTS
    for kind in (MUSUBI_KINDS if checkout.family == MUSUBI else SD_KINDS)
}


class Subject:
    """`train` makes a folder of its own for every run and expects success, unless `rc` says otherwise."""

    def __init__(self, name, folder):
        self.kind, self.checkout = SUBJECTS[name]
        self.folder, self.count = folder, 0
        self.is_musubi = self.checkout.family == MUSUBI
        self.real = runs.Real(folder, self.kind, self.checkout.home)
        self.network = self.real.kind.network
        self.logs_twice = not self.is_musubi and runs.release(self.checkout.home) == "0.10"

    def train(self, rc=0, **fields):
        out = self._out()
        return self._said(self.real.train(out, runs.Request(**fields)), rc)

    def train_config(self, config, steps, *extra):
        """A TOML, with what stands on the command line in place of its own."""
        words = ["--steps", steps, "--config_file", config]
        return self._said(self.real.run(self._out(), words, extra), 0)

    def in_copy(self):
        """From here on the subject is a copy of the checkout, which may be changed."""
        copy = shutil.copytree(self.checkout.home, self.folder / "checkout", ignore=shutil.ignore_patterns(".git"))
        self.real.home = copy
        return copy

    def _out(self):
        self.count += 1
        out = self.folder / f"run{self.count}"
        out.mkdir()
        return out

    def _said(self, report, rc):
        assert report.rc == rc, report.log[-3000:]
        return report


def pytest_generate_tests(metafunc):
    if "subject" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("only")
        names = [name for name, (kind, _) in SUBJECTS.items() if only is None or kind in only.args]
        metafunc.parametrize("subject", names, indirect=True)


@pytest.fixture
def subject(request, tmp_path, monkeypatch):
    found = Subject(request.param, tmp_path)
    monkeypatch.setenv("SD_SCRIPTS_HOME", str(found.checkout.home))
    yield found
    if os.environ.get("HINA_TRAINERS_KEEP") is None:
        shutil.rmtree(tmp_path)  # a hundred models would fill the disk


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and os.environ.get("HINA_TRAINERS") and "subject" in item.fixturenames:
        kind, checkout = SUBJECTS[item.callspec.params["subject"]]
        result = {
            "test": item.originalname,
            "kind": kind,
            **{name: getattr(checkout, name) for name in ("family", "release", "commit")},
            "outcome": report.outcome,
            "seconds": round(report.duration, 1),
            "why": str(call.excinfo.value)[-1500:] if call.excinfo else "",
        }
        name = re.sub(r"[^-.\w]+", "_", item.name)
        file = Path(os.environ["HINA_TRAINERS"]) / f"{name}.json"
        file.write_text(json.dumps(result, indent=1))
    return report
