"""Apply and revert, killed or failing at any moment: the file is the old one or the new one, and `status` knows which.

The rounds run in a process of their own that forks: `PYTHONPATH=. python tests/kohya/test_patch_kill.py MODE FOLDER`.
"""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from hina_kohya import patch
from hina_kohya.patch import State, swap, trial
from hina_kohya.patch.targets import LYCORIS
from hina_kohya.trainers.errors import UserError
from tests.support.patch_site import make_site, published, use

ROOT = Path(__file__).parents[2]
KILLS = 200
# What changes a folder or a file in it, by the name of its audit event.
TRIAL = "hina.trial"  # writes nothing, and is a moment like the others
WRITES = (TRIAL, "open", "os.rename", "os.remove", "os.chmod", "os.chown", "os.utime", "tempfile.mkstemp")


class Site:
    """A patched or unpatched file, and whether what is there now is right."""

    def __init__(self, folder):
        self.file = make_site(folder, published())
        use(folder)
        trial.run = lambda target, staged, file: sys.audit(TRIAL, str(file)) or ""
        original = self.file.read_bytes()
        self.act()
        self.known = {digest(original): State.NOT_PATCHED, digest(self.file.read_bytes()): State.PATCHED}
        self.act()
        assert self.file.read_bytes() == original

    def act(self):
        """Applies or reverts, whichever is next."""
        told = patch.inspect(LYCORIS)
        (patch.revert if told.state is State.PATCHED else patch.apply)(told)

    def check(self):
        """The file is one of the two, and the state says which."""
        there = digest(self.file.read_bytes())
        assert there in self.known, "neither the old file nor the new one"
        assert patch.inspect(LYCORIS).state is self.known[there]


def digest(data):
    return hashlib.sha256(data).hexdigest()


def forked(act):
    """A child doing `act`: its process id, and a pipe that says when it begins."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writer, b".")
            code = act() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return child


def span(site, runs=20):
    """Seconds that an undisturbed apply or revert needs."""
    start = time.perf_counter()
    for _ in range(runs):
        os.waitpid(forked(site.act), 0)
    return (time.perf_counter() - start) / runs


def kill_at_random(site):
    usual, rng = span(site), random.Random(0)
    seen = {"killed": 0, "in between": 0, "applied": 0, "reverted": 0}
    while seen["killed"] < KILLS:
        before = patch.inspect(LYCORIS).state
        if before is State.PATCHED and rng.random() < 0.3:
            swap.kept_original(site.file).unlink(missing_ok=True)  # revert then takes the lines out
        child = forked(site.act)
        time.sleep(rng.random() * 1.5 * usual)
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        site.check()
        seen["killed"] += killed
        seen["in between"] += killed and bool(swap.leftovers(site.file))
        if patch.inspect(LYCORIS).state is not before:
            seen["applied" if before is State.NOT_PATCHED else "reverted"] += 1
    return seen


def at_every_write(site, at_write):
    """One run for each write that apply and revert do, in which `at_write` is called just before it; how many."""
    rounds = 0
    # An apply, a revert to the kept original, and one without it.
    for action, forget in ((State.PATCHED, True), (State.NOT_PATCHED, False), (State.NOT_PATCHED, True)):
        for nth in range(100):
            if patch.inspect(LYCORIS).state is action:
                site.act()
            swap.tidy(site.file, forget_original=forget)
            status = os.waitpid(forked(lambda nth=nth: interrupted(site, nth, at_write)), 0)[1]
            site.check()
            assert at_write is not fail_once or not swap.leftovers(site.file)
            swap.tidy(site.file)
            kept = swap.kept_original(site.file).exists()
            assert not kept or patch.inspect(LYCORIS).state is State.PATCHED, (
                "it looks like a file that was reinstalled"
            )
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                assert patch.inspect(LYCORIS).state is action
                break  # there is no nth write
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == UserError.exit_code
            rounds += 1
        else:
            raise AssertionError("it never ends")
    return {"rounds": rounds}


def interrupted(site, nth, at_write):
    writes = 0

    def hook(event, words):
        nonlocal writes
        reads = event == "open" and not words[2] & (os.O_WRONLY | os.O_RDWR)
        if event in WRITES and not reads and str(site.file) in str(words):
            writes += 1
            if writes > nth:
                at_write(writes == nth + 1)

    sys.addaudithook(hook)
    try:
        site.act()
    except UserError as error:
        return error.exit_code if "nothing was changed" in str(error) else 1
    return 0


def die(first):
    os.kill(os.getpid(), signal.SIGKILL)


def fail_once(first):
    if first:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_from_now_on(first):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


MODES = {
    "random": kill_at_random,
    "die": lambda site: at_every_write(site, die),
    "fail-once": lambda site: at_every_write(site, fail_once),
    "fail-from-now-on": lambda site: at_every_write(site, fail_from_now_on),
}


def rounds(mode, folder):
    command = [sys.executable, __file__, mode, str(folder / "site")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no SIGKILL")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    seen = rounds("random", tmp_path)
    assert seen["killed"] == KILLS
    assert min(seen.values()) >= 3, seen  # both actions ended or were cut off, and some in the middle


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["die", "fail-once", "fail-from-now-on"])
def test_stopped_at_every_write(tmp_path, mode):
    assert rounds(mode, tmp_path)["rounds"] >= 8


if __name__ == "__main__":
    print(json.dumps(MODES[sys.argv[1]](Site(Path(sys.argv[2])))))
