"""The table of optimizers against the real `get_optimizer`: every row, with arguments it adds, fixes or corrects."""

import ast

import pytest

from hina_kohya.trainers.facts.optimizers import SD_SCRIPTS

ARGUMENTS = (
    (), ("weight_decay=0.1",), ("momentum=0.5",), ("nesterov=False",), ("relative_step=False", "scale_parameter=False"),
    ("relative_step=False", "warmup_init=True"), ("warmup_init=True",), ("relative_step=True",),
)  # fmt: skip
PACKAGES = ("bitsandbytes", "lion_pytorch", "dadaptation", "prodigyopt", "schedulefree")
OTHERS = ("RAdam", "tests.support.contract.Recorder", "tests.support.contract.Recorder8bit", "DAdaptNothing",
          "dadapt.X", "tests.support.contract.RecorderScheduleFree", "")  # fmt: skip
OF_ADAFACTOR = ("relative_step", "warmup_init", "scale_parameter")


@pytest.mark.old_layout_too
def test_every_row_with_every_set_of_arguments(trainer):
    cases = [(name, words) for name in (*SD_SCRIPTS.names, *OTHERS) for words in ARGUMENTS]
    calls = [
        ((name.upper() if name in SD_SCRIPTS.names else name, words), {"present": PACKAGES}) for name, words in cases
    ]
    for (name, words), answer in zip(cases, trainer.ask("many", "optimizer", calls), strict=True):
        options = {key: ast.literal_eval(value) for key, value in (word.split("=") for word in words)}
        making = SD_SCRIPTS.making(name, options, 1e-3)
        if making.refusal:
            assert answer["error"] in ("TypeError", "ValueError")
        elif "error" in answer:  # what the class itself refuses
            assert answer["error"] == "TypeError", (name, words, answer)
            assert any(f"'{key}'" in answer["message"] for key in options), answer
        else:
            assert_made_alike(making, answer)


def assert_made_alike(making, answer):
    recorded = answer["class"].startswith("tests.support.contract.")
    path = "torch.optim.adamw.AdamW" if making.path == "torch.optim.AdamW" else making.path
    assert recorded or answer["class"].rpartition(".")[2] == path.rpartition(".")[2]
    given = answer["options"] if recorded else answer["defaults"]
    for key, value in making.arguments.items():
        assert given.get(key) == repr(value), (key, making, answer)
    assert (answer["lr"] is None) == (making.lr is None)
    assert answer["lr_scheduler"] == (making.lr_scheduler or "constant")


def test_what_is_imported_first(trainer):
    cases = [(name, absent) for name in (*SD_SCRIPTS.names, *OTHERS) for absent in PACKAGES]
    present = {absent: [each for each in PACKAGES if each != absent] for absent in PACKAGES}
    calls = [((name,), {"present": present[absent], "absent": [absent]}) for name, absent in cases]
    for (name, absent), answer in zip(cases, trainer.ask("many", "optimizer", calls), strict=True):
        missing = answer.get("error") == "ImportError" and absent.split("_")[0][:5] in answer["message"].lower()
        assert missing == (absent == SD_SCRIPTS.making(name, {}, 1e-3).package), (name, absent, answer)
