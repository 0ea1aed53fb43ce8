"""A script in two processes, which find each other and have to do the same."""

import subprocess
import sys


def outputs(script, folder, timeout=120):
    """What each of two processes wrote into `FILE.RANK`. The script's arguments are its rank and FILE."""
    file = folder / "ranks.py"
    file.write_text(script)
    environment = {"PYTHONHASHSEED": "0", "PYTHONPATH": ".", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(file)]
    running = [subprocess.Popen([*command, str(rank), str(folder / "store")], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=timeout) for process in running] == [0, 0]
    return [(folder / f"store.{rank}").read_text() for rank in (0, 1)]
