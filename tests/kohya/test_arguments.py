"""--optimizer_args: read as meant, or refused with the line to type."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.optimizer_args import parse


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=(0.9,0.99)", (0.9, 0.99)),
        ("a=0.9,0.95", (0.9, 0.95)),
        ("a= (0.9, 0.95)", (0.9, 0.95)),
        ("a=[1, 2]", [1, 2]),
        ("a=None", None),
        ("a=True", True),
        ("a=1e-8", 1e-8),
        ("a='fp32'", "fp32"),
        ("a={'x': 1}", {"x": 1}),
        # what sd-scripts refuses or misreads
        ("a=true", True),
        ("a=FALSE", False),
        ("a=none", None),
        ("a=fp32", "fp32"),
        ("a=8bit", "8bit"),
        ("a=int8_sr", "int8_sr"),
        ("a=b=c", "b=c"),
        ("a=C:\\presets\\mine.toml", "C:\\presets\\mine.toml"),
        ("a=0.5,", 0.5),
        ("a=(0.5,)", (0.5,)),
        ("a = 0.5", 0.5),
        (" a =0.5 ", 0.5),
        ("'a=0.5'", 0.5),
        ('"a=fp32"', "fp32"),
    ],
)
def test_one_word(word, value):
    assert parse([word]) == {"a": value}
    assert type(parse([word])["a"]) is type(value)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (None, {}),
        ([], {}),
        ("weight_decay=0.1 betas=(0.9, 0.99)", {"weight_decay": 0.1, "betas": (0.9, 0.99)}),
        (["betas=(0.9,", "0.99)", "eps=1e-6"], {"betas": (0.9, 0.99), "eps": 1e-6}),
        (["betas=0.9,", "0.99"], {"betas": (0.9, 0.99)}),
        (["weight_decay=0.1,", "betas=0.9,0.99"], {"weight_decay": 0.1, "betas": (0.9, 0.99)}),
        (["weight_decay=0.1", ",", "eps=1e-6"], {"weight_decay": 0.1, "eps": 1e-6}),
        (["betas", "=", "(0.9,", "0.99)"], {"betas": (0.9, 0.99)}),
        (["weight_decay=", "0.1", "state=8bit"], {"weight_decay": 0.1, "state": "8bit"}),
        (["cautious.floor=0.01"], {"cautious.floor": 0.01}),
    ],
)
def test_several_words(words, arguments):
    assert parse(words) == arguments


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["weight_decay"], "write weight_decay=True, or a value"),
        (["weight_decay="], "write weight_decay=True, or a value"),
        (["--weight_decay=0.1"], "write weight_decay=0.1"),
        (["weight-decay=0.1"], "write weight_decay=0.1"),
        (["weight_decay:0.1"], "is not name=value"),
        (["wd=0.1", "use_cautious", "eps=1"], "write use_cautious=True"),
        (["wd=1/3"], "write wd=0.333333"),
        (["wd=0.1.2"], "is not a number"),
        (["betas=(0.9, 0.99"], "write betas=(0.9, 0.99)"),
        (["betas=0.9, 0.99)"], "write betas=0.9, 0.99"),
        (["a='x"], "cannot be read"),
        (["lr=1"], "use --learning_rate"),
        (["params=1"], "params is not given here"),
        (["a=1", "a=2"], "a is given twice"),
        ([0.1], 'write "name=0.1"'),
    ],
)
def test_refused(words, said):
    with pytest.raises(UserError, match="optimizer_args") as caught:
        parse(words)
    assert said in str(caught.value)


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)


@pytest.mark.slow
@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda n: n not in ("lr", "params")), literals)
)
def test_whatever_sd_scripts_reads_is_read_alike(arguments):
    words = [f"{name}={value!r}" for name, value in arguments.items()]
    theirs = {key: ast.literal_eval(value) for key, value in (word.split("=") for word in words)}
    assert parse(words) == theirs == arguments
