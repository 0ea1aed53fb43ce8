"""`--quick`, one thread for every test, hooks off before each, and values in the assertions of tests/support."""

import subprocess

import pytest
import torch

import hina_kohya.techniques  # noqa: F401 (importing it registers them)
from hina_kohya.trainers import hooks

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


def pytest_collection_finish():
    if hooks.active():
        raise pytest.UsageError("a test module turns our hooks on when it is imported; import what does in the test")


@pytest.fixture(autouse=True)
def _hooks_as_they_were():
    """They are of the whole process: who turns them on must not decide what the next test sees."""
    was_active = hooks.active()
    yield
    if not was_active:
        hooks.uninstall()


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def forked_python(request, monkeypatch):
    """What a test starts with this Python is a fork of a process that has torch (`tests.support.forks`)."""
    from tests.support import forks

    if forks.HAS_FORK and not request.node.get_closest_marker("own_python"):
        monkeypatch.setattr(subprocess, "Popen", forks.Popen)
