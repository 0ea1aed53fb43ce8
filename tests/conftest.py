"""One thread for every test, and values in the assertions of tests/support."""

import pytest
import torch

pytest.register_assert_rewrite("tests.support")  # whose assertions then show their values


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
