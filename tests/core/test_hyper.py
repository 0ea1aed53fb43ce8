"""Bounds of hyperparameters, where the tests of an optimizer do not reach them."""

import dataclasses as dc

import pytest

from hina_kohya.core.hyper import check, hyper


@dc.dataclass(frozen=True)
class Options:
    ratio: float | None = hyper(None, "[0, 1)", doc="None: as the technique has it")
    size: float = hyper(1.0, "(0, inf]", doc="")


def test_none_is_fine_where_it_is_the_default():
    check(Options())
    check(Options(ratio=None, size=2))
    check(Options(ratio=0.5))


@pytest.mark.parametrize(
    "bad", [{"ratio": 1.0}, {"ratio": "x"}, {"ratio": True}, {"size": None}, {"size": 0.0}], ids=str
)
def test_and_nothing_else_is_let_through(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        check(Options(**bad))
