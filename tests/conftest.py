"""`--quick`, one thread for every test, and values in the assertions of tests/support."""

import pytest
import torch

import hina_kohya.techniques  # noqa: F401 (importing it registers them)

pytest.register_assert_rewrite("tests.support")  # whose assertions then show their values


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="the first case of every test, and none that is marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--quick"):
        return
    kept, left, names = [], [], set()
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in names or item.get_closest_marker("slow"):
            left.append(item)
        else:
            kept.append(item)
            names.add(name)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
