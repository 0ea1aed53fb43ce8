"""The mutants themselves: `scripts/mutate.py` runs them after the tests, minutes later."""

import pytest

from scripts.mutate import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_breaks_one_line_that_is_there(mutant):
    source = (ROOT / "hina_kohya" / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1
    assert (ROOT / mutant.tests.partition("::")[0]).exists()
