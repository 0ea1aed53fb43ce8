"""The double within this process, which is the same afterwards: seconds in place of tens of them."""

import contextlib
import io
import logging
import os
import random
import re
import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from lycoris.kohya import LycorisNetworkKohya

from hina_kohya.trainers import hooks

DOUBLE, DOUBLE_MUSUBI = (Path(__file__).parents[1] / "kohya" / name for name in ("double", "double_musubi"))
LYCORIS_STATE = re.compile(r"[A-Z_]+")  # class attributes that a preset sets, for the whole process
FRESH = (
    "hina_kohya.lycoris",
    "hina_kohya.network",
    "tests.support.order_probe",
    "tests.support.noise_probe",
)  # their import is part of a training
HARMLESS = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


@contextlib.contextmanager
def checkout(home, plugins=(), environment=HARMLESS):
    """The world as `python home/SCRIPT` sees it; afterwards this process is as before, our hooks taken off included."""
    _forget(FRESH)
    modules, path, argv, variables = set(sys.modules), list(sys.path), list(sys.argv), dict(os.environ)
    root, level, state = list(logging.root.handlers), logging.root.level, random.getstate()
    logging.root.handlers[:] = []
    sys.path[:0] = map(str, (home, *plugins))
    os.environ.update(environment)
    try:
        yield
    finally:
        hooks.uninstall()
        _forget(name for name in set(sys.modules) - modules if _within(sys.modules[name], (home, *plugins)))
        _forget(FRESH)
        sys.path[:], sys.argv[:] = path, argv
        os.environ.clear()
        os.environ.update(variables)
        logging.root.handlers[:] = root
        logging.root.setLevel(level)
        random.setstate(state)


def _forget(names):
    for name in list(names):
        sys.modules.pop(name, None)


def _within(module, folders):
    spec = vars(module).get("__spec__")
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or ())]
    return any(place.startswith(f"{folder}{os.sep}") for place in places for folder in folders)


def train_here(home, request, words, environment):
    """A training in this process: (exit status, log)."""
    log, rc = io.StringIO(), 0
    script = home / request.script
    with (
        checkout(home, request.plugins, environment),
        _lycoris(log),
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            if request.hooks:
                hooks.install()
            sys.argv[:] = [str(script), *words]
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as error:
            rc = error.code if isinstance(error.code, int) else int(error.code is not None)
        except Exception:  # the interpreter's part: every error ends a training with a traceback
            sys.excepthook(*sys.exc_info())
            rc = 1
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return rc, single_spaces(log.getvalue())


@contextlib.contextmanager
def _lycoris(log):
    """LyCORIS as after its import: a preset writes class attributes; its log goes where stdout was at its import."""
    state = {name: value for name, value in vars(LycorisNetworkKohya).items() if LYCORIS_STATE.fullmatch(name)}
    handlers = [
        each for each in logging.getLogger("LyCORIS").handlers if type(each) is logging.StreamHandler
    ]  # its own
    streams = [(handler, handler.setStream(log)) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in streams:
            handler.setStream(stream)
        for name, value in state.items():
            setattr(LycorisNetworkKohya, name, value)


def single_spaces(text):
    return re.sub(r"\s+", " ", text)
