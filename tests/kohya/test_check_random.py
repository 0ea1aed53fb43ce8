"""No words and no file make a traceback, and no number of mistakes makes a wall of text."""

import os
import random
import time

import pytest
import toml

from hina_kohya.check import printing, report
from hina_kohya.check.run import options_of_all
from hina_kohya.trainers.errors import UserError

OPTIONS = [f"--{name}" for name in options_of_all()]
VALUES = (
    "", "1", "-1", "0", "1e-4", "inf", "nan", "x", "a=b", "algo=lokr", "preset=full", "betas=(0.9,0.99)", "=", "==",
    "true", "False",
    "weight_decay=0.1,", "--", "-", "C:\\new\\train", "<fill in>", "networks.lora", "lycoris.kohya",
    "hina_kohya.network",
    "hina_kohya.adlrns", "1,2,3", "10%", "\0", "ü", "🐱", "a b", "[1, 2]", "$HOME", "%PATH%",
    "inner=networks.lora_flux",
)  # fmt: skip
# What would start a process that imports torch is left to other tests.
NOT_TRIED = (
    "--optimizer_type",
    "--lr_scheduler_type",
    "--lr_scheduler_args",
    "--optimizer_args",
    "--use_8bit_adam",
    "--use_lion_optimizer",
)
SCRIPTS = ("train_network.py", "sdxl_train_network.py", "flux_train_network.py", "wan_train_network.py")
KNOWN = [each for each in OPTIONS if each not in NOT_TRIED]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_one_line(error):
    assert "\n" not in str(error)
    assert len(str(error)) < 500


def words(chance):
    found = []
    for _ in range(chance.randrange(1, 12)):
        option = chance.choice(KNOWN)
        option = option[: chance.randrange(3, len(option) + 1)] if chance.random() < 0.15 else option
        option = "--" + "".join(chance.choices("abcdefg_-= ", k=8)) if chance.random() < 0.1 else option
        if any(each.startswith(option.partition("=")[0]) for each in NOT_TRIED):
            continue
        given = chance.choices(VALUES, k=chance.randrange(0, 4))
        found += [f"{option}={given[0]}", *given[1:]] if given and chance.random() < 0.3 else [option, *given]
    return found


@pytest.mark.slow
def test_600_random_argument_strings():
    chance = random.Random(0)
    for _ in range(600):
        line = ["accelerate", "launch", chance.choice(SCRIPTS), *words(chance)]
        try:
            found = report.check(line)
        except UserError:
            continue
        assert len(printing.text(found)) < 150, line


def value(chance, depth=0):
    kind = chance.randrange(9 if depth < 2 else 6)
    if kind == 7:
        return {chance.choice(("a", "b", "weight_decay")): value(chance, 2)}
    return (
        chance.choice((True, False)), chance.randrange(-5, 2000),
        chance.choice((0.0, -1.5, 1e-4, float("inf"), float("nan"))),
        chance.choice(VALUES), chance.choice(VALUES), [], [chance.choice(VALUES) for _ in range(3)],
        None, [[1], [2]],
    )[kind]  # fmt: skip


@pytest.mark.slow
def test_600_random_tomls(folder):
    chance = random.Random(1)
    names = [each[2:] for each in KNOWN]
    sections = ("training", "optimizer_args", "network_args", "general", "x.args")
    for _ in range(600):
        content = {chance.choice(names): value(chance) for _ in range(chance.randrange(1, 25))}
        content |= (
            {chance.choice(sections): {chance.choice(names): value(chance) for _ in range(4)}}
            if chance.random() < 0.4
            else {}
        )
        content |= {"datasets": [{"subsets": value(chance)}, value(chance, 2)]} if chance.random() < 0.2 else {}
        try:
            text = toml.dumps(content)
        except (TypeError, AttributeError, IndexError):  # its writer trips, too
            continue
        (folder / "c.toml").write_text(text.replace("\0", ""), encoding="utf-8")
        try:
            found = report.check("c.toml", script=chance.choice((None, *SCRIPTS)))
        except UserError:
            continue
        assert len(printing.text(found)) < 150, text


@pytest.mark.slow
def test_600_random_texts(folder):
    """Broken TOMLs, JSONs and scripts: a UserError in one line, or a report."""
    chance = random.Random(2)
    pieces = (
        "seed = 1\n", "[x]\n", "[[datasets]]\n", "a = [", "]\n", '"', "'", "=", "{", "}", "\\", "^\n", "`\n",
        "accelerate launch ",
                "train_network.py ", "--seed 1 ", "$x=", "set a=b\n", "%a% ",
        "${A[@]} ", "if [ x ]; then\n", "fi\n", "\ufeff",
        "“x”", ".5", "#",
    )  # fmt: skip
    for _ in range(600):
        name = f"c{chance.choice(('.toml', '.json', '.sh', '.bat', '.ps1', '.yaml'))}"
        (folder / name).write_text("".join(chance.choices(pieces, k=chance.randrange(1, 30))), encoding="utf-8")
        try:
            printing.text(report.check(name))
        except UserError as error:
            assert_one_line(error)


@pytest.mark.slow
def test_a_hundred_thousand_unknown_keys(folder):
    text = "".join(f"key{number} = {number}\n" for number in range(100_000))
    (folder / "many.toml").write_text(text)
    start = time.process_time()
    lines = printing.text(report.check("many.toml"))
    seconds = time.process_time() - start
    assert len(lines) < 100
    assert any("99,950 keys more" in line for line in lines)
    assert seconds < 5 or os.environ.get("CI"), seconds


@pytest.mark.slow
def test_deep_nesting_and_long_values_are_one_line(folder):
    for text in ("a = " + "[" * 5000 + "]" * 5000, "a = '" + "x" * 10**6 + "'", "[" + ".".join("a" * 1000) + "]"):
        (folder / "deep.toml").write_text(text)
        try:
            assert all(len(line) < 600 for line in printing.text(report.check("deep.toml")))
        except UserError as error:
            assert_one_line(error)
