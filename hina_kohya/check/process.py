"""The process that imports torch for a check: started when it is asked first, and its end is not the check's."""

import atexit
import base64
import contextlib
import json
import os
import pickle
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hina_kohya.trainers.errors import UserError

_ROOT = Path(__file__).parents[2]
# This very package, which may lie beside everything else, so its folder comes last; and not the current folder.
_BOOTSTRAP = """import sys
path = [*filter(None, sys.path), sys.argv[1]]
sys.path[:] = [sys.argv[1], *path]
import hina_kohya
sys.path[:] = path
from hina_kohya.check.worker import main
sys.exit(main())"""
Listener = Callable[[Mapping[str, Any]], None]


class Process:
    """Answers requests one after the other; after a crash the next request starts it again."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: Any = None

    def ask(self, request: Mapping[str, Any], timeout: float = 300, listener: Listener | None = None) -> "Answer":
        """Raises UserError where it takes too long."""
        running = self._started()
        assert running.stdin is not None
        content: dict[str, Any] = {"warnings": []}
        with contextlib.suppress(BrokenPipeError):
            running.stdin.write(base64.b64encode(pickle.dumps(dict(request))).decode() + "\n")
            running.stdin.flush()
        while True:
            try:
                line = self._lines.get(timeout=timeout)
            except queue.Empty as error:
                self.close()
                raise UserError(f"the network was not made within {timeout:g} seconds; is the machine busy?") from error
            if line is None:
                return Answer(content, self._fault(running))
            message = json.loads(line)
            if message.pop("done", False):
                return Answer(content, "")
            content["warnings"] += message.pop("warnings", [])
            content.update(message)
            if listener is not None:
                listener(content)

    def close(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()
            for pipe in (self._running.stdin, self._running.stdout, self._errors):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was not written yet cannot be
                        pipe.close()
            self._running = None

    def _started(self) -> "subprocess.Popen[str]":
        if self._running is None or self._running.poll() is not None:
            self.close()
            self._lines = queue.Queue()
            # Closed with the process.
            self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
            self._running = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, str(_ROOT)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8",
                errors="replace", env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            )  # fmt: skip
            threading.Thread(target=_read, args=(self._running.stdout, self._lines), daemon=True).start()
        return self._running

    def _fault(self, running: "subprocess.Popen[str]") -> str:
        """The error that ended it."""
        code = running.wait()
        self._errors.seek(0)
        lines = self._errors.read().splitlines()
        errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b", line)]
        return errors[-1] if errors else f"exit code {code}"


class Answer:
    """content: all its messages together; fault: the error that ended the process, "" where it lives"""

    def __init__(self, content: dict[str, Any], fault: str):
        self.content, self.fault = content, fault


def _read(pipe: Any, lines: "queue.Queue[str | None]") -> None:
    with contextlib.suppress(ValueError):  # closed meanwhile
        for line in pipe:
            lines.put(line)
    lines.put(None)


# One for all checks of this program: importing torch takes most of its time.
SHARED = Process()
atexit.register(SHARED.close)
