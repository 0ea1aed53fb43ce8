"""`python -c`, `-m` and `FILE` as forks of one process that has imported torch: half a second in place of four.

For tests of what such a process does, not of what it imports or of how long it starts. Only where there is fork.
"""

import contextlib
import os
import runpy
import subprocess
import sys
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection

IMPORTS = ["torch", "bitsandbytes"]
HAS_FORK = sys.platform == "linux"


@cache
def _base():
    """`sys.path` of a fresh Python, less what PYTHONPATH and the command put before it."""
    code = "import sys; print(*sys.path[1:], sep='\\n')"
    command = [sys.executable, "-E", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


class Popen(subprocess.Popen):
    """The same as its base for commands of another kind."""

    _fork = None

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        words = [] if isinstance(args, (str, bytes)) else list(map(str, args))
        if not words or words[0] != sys.executable or not _is_known(words[1:]):
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        pipes = rest[3:9]  # of stdin, stdout and stderr what is read and what is written
        ends = {number: fd for number, fd in enumerate((pipes[0], pipes[3], pipes[5])) if fd != -1}
        handles = {number: Connection(os.dup(fd)) for number, fd in ends.items()}
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTS)
        world = (os.fspath(cwd or os.getcwd()), dict(os.environ if env is None else env), _base())
        self._fork = context.Process(target=_run, args=(handles, *world, words[1:]))
        self._fork.start()
        self.pid, self._child_created = self._fork.pid, True
        for handle in handles.values():
            handle.close()
        self._close_pipe_fds(*pipes)
        return None

    def _internal_poll(self, *args, **options):
        if self._fork is None:
            return super()._internal_poll(*args, **options)
        self.returncode = self._fork.exitcode if self.returncode is None else self.returncode
        return self.returncode

    def _wait(self, timeout):
        if self._fork is None:
            return super()._wait(timeout)
        self._fork.join(timeout)
        if self._internal_poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def _is_known(words):
    words = words[words[:1] == ["-B"] :]
    return bool(words) and (words[0] in ("-c", "-m") or words[0].endswith(".py"))


def _run(handles, folder, environment, base, words):
    for number, handle in handles.items():
        os.dup2(handle.fileno(), number)
        handle.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    encoding = environment.get("PYTHONIOENCODING") or "utf-8"
    sys.stdin, sys.stdout = open(0, encoding=encoding), open(1, "w", encoding=encoding)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", buffering=1)  # noqa: SIM115
    sys.stdout.reconfigure(write_through=bool(environment.get("PYTHONUNBUFFERED")))
    sys.dont_write_bytecode = words[0] == "-B" or "PYTHONDONTWRITEBYTECODE" in environment
    kind, *rest = words[words[0] == "-B" :]
    paths = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    first = os.path.dirname(os.path.abspath(kind)) if kind.endswith(".py") else os.getcwd() if kind == "-m" else ""
    sys.path[:] = [first, *paths, *base]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    with contextlib.suppress(KeyError):
        del sys.modules["__mp_main__"]
    sys.argv = [kind, *rest[1:]] if kind in ("-c", "-m") else [kind, *rest]
    if kind == "-c":
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(kind, run_name="__main__")
