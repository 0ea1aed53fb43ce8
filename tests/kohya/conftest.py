"""`trainer` and `musubi`: the doubles of sd-scripts and musubi-tuner, and the real things where there are any."""

import pytest

from tests.support import old_layout
from tests.support.children import without_peft  # noqa: F401 (a fixture)


class Trainer:
    """`train` makes a folder of its own for every run and expects success, unless `rc` says otherwise."""

    def __init__(self, subject, request, folder):
        self.subject, self.request, self.folder, self.count = subject, request, folder, 0
        self.name, self.home, self.ask = subject.name, subject.home, subject.ask
        self.release = subject.release

    def train(self, rc=0, here=True, **fields):
        self.count += 1
        out = self.folder / f"run{self.count}"
        out.mkdir()
        report = self.subject.train(out, self.request(**fields), here)
        assert report.rc == rc, report.log[-3000:]
        return report

    def needs(self, *files):
        for file in files:
            if not (self.home / file).exists():
                pytest.skip(f"this checkout has no {file}")


@pytest.fixture(scope="session")
def _musubi_subjects(_runs, tmp_path_factory):
    subjects = {"double": _runs.DoubleMusubi()}
    if _runs.real_musubi() is not None:
        subjects["musubi-tuner"] = _runs.Real(tmp_path_factory.mktemp("harness"), "wan")
    yield subjects
    if "musubi-tuner" in subjects:
        subjects["musubi-tuner"].close()


@pytest.fixture(scope="session")
def _runs():
    from tests.support import runs

    return runs


@pytest.fixture(scope="session")
def _subjects(_runs, tmp_path_factory):
    runs = _runs
    old = old_layout.make(tmp_path_factory.mktemp("old") / "sd-scripts")
    subjects = {"double": runs.Double(), "double-0.10": runs.Double(old)}
    if runs.real_checkout() is not None:
        subjects["sd-scripts"] = runs.Real(tmp_path_factory.mktemp("harness"))
    yield subjects
    if "sd-scripts" in subjects:
        subjects["sd-scripts"].close()


def pytest_generate_tests(metafunc):
    if "trainer" in metafunc.fixturenames:
        old = metafunc.definition.get_closest_marker("old_layout_too")
        subjects = ["double", *(["double-0.10"] if old else []), "sd-scripts"]
        metafunc.parametrize("trainer", subjects, indirect=True)
    if "musubi" in metafunc.fixturenames:
        metafunc.parametrize("musubi", ["double", "musubi-tuner"], indirect=True)


@pytest.fixture
def trainer(request, _runs, _subjects, tmp_path):
    if request.param not in _subjects:
        pytest.skip("needs SD_SCRIPTS_HOME and the harness")
    return Trainer(_subjects[request.param], _runs.Request, tmp_path)


@pytest.fixture
def musubi(request, _runs, _musubi_subjects, tmp_path):
    if request.param not in _musubi_subjects:
        pytest.skip("needs MUSUBI_HOME and the harness")
    return Trainer(_musubi_subjects[request.param], _runs.Request, tmp_path)
