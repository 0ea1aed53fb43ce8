import sys

import pytest

from hina_kohya.trainers import hooks


@pytest.fixture(autouse=True)
def as_it_was():
    """Presets of LyCORIS and our hooks are of the whole process."""
    was_active = hooks.active()
    kohya = sys.modules.get("lycoris.kohya")
    before = dict(vars(kohya.LycorisNetworkKohya)) if kohya else {}
    yield
    for name, value in before.items():
        if name.isupper():
            setattr(kohya.LycorisNetworkKohya, name, value)
    if not was_active:
        hooks.uninstall()
