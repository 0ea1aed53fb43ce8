import sys

import pytest


@pytest.fixture(autouse=True)
def as_it_was():
    """Presets of LyCORIS are of the whole process."""
    kohya = sys.modules.get("lycoris.kohya")
    before = dict(vars(kohya.LycorisNetworkKohya)) if kohya else {}
    yield
    for name, value in before.items():
        if name.isupper():
            setattr(kohya.LycorisNetworkKohya, name, value)
