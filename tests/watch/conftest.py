"""One run for many questions."""

import pytest

from tests.support.run_folders import whole


@pytest.fixture(scope="session")
def cat(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("runs") / "cat")
