"""What the real trainers of sd-scripts do with configurations: each in a fork of one process with all imports.

    python scripts/real_outcomes.py CASES.json OUTCOMES.json

Run by the harness's Python. CASES: {name: {"script": "train_network.py", "words": [...], "files": {name: text}}}; words
and files may hold {ASSETS} and {OUT}. OUTCOMES: {name: {"parser": "ok" or what argparse said, "trainer": "trains",
"nothing" (no file, or one whose weights are all as they began), "nan", or how it stops}}.
Environment: SD_SCRIPTS_HOME, HARNESS_DIR, the harness's stubs on PYTHONPATH. Linux only: it forks.
"""

import contextlib
import importlib
import json
import math
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(os.environ["SD_SCRIPTS_HOME"])
ASSETS = Path(os.environ["HARNESS_DIR"]) / "assets"
TIMEOUT = 240


def run(script: str, words: list[str], folder: Path) -> dict[str, str]:
    """In a process of its own, as `python script words`."""
    log = folder / "log.txt"
    child = os.fork()
    if child == 0:
        with log.open("wb", buffering=0) as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.chdir(folder)
        signal.alarm(TIMEOUT)
        sys.argv = [str(HOME / script), *words]
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            import traceback  # noqa: PLC0415 (in the child only)

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return outcome(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), folder)


def outcome(code: int, log: str, folder: Path) -> dict[str, str]:
    messages = re.findall(r"^\S+\.py: error: (.*)$", log, re.MULTILINE)
    if code == 2 and messages:
        return {"parser": messages[-1][:200], "trainer": "stops: argparse"}
    if code < 0:
        return {"parser": "ok", "trainer": "timeout" if code == -signal.SIGALRM else f"stops: signal {-code}"}
    if code:
        lines = [
            line
            for line in log.splitlines()
            if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Invalid)\b|SystemExit", line)
        ]
        message = lines[-1] if lines else log.strip().splitlines()[-1] if log.strip() else f"exit code {code}"
        return {"parser": "ok", "trainer": f"stops: {message[:200].replace(str(folder), 'OUT')}"}
    return {"parser": "ok", "trainer": trained(folder)}


def trained(folder: Path) -> str:
    from safetensors.torch import load_file  # noqa: PLC0415 (torch)

    files = sorted(folder.rglob("*.safetensors"))
    files = [each for each in files if "state" not in str(each.parent)]
    if not files:
        return "nothing: no file"
    weights = load_file(files[0])
    if any(not math.isfinite(each.float().sum().item()) for each in weights.values()):
        return "nan"
    late = [
        each for name, each in weights.items() if re.search(r"lora_up|hada_w2_a|lokr_w1|lokr_w2|oft|diff|\bw\b", name)
    ]
    if not weights or (late and not any(each.float().abs().max().item() > 0 for each in late)):
        return "nothing: weights as they began"
    return "trains"


def main(source: str, target: str) -> None:
    sys.path.insert(0, str(HOME))
    for module in (
        "torch",
        "transformers",
        "diffusers",
        "accelerate",
        "train_network",
        "sdxl_train_network",
        "networks.lora",
        "lycoris.kohya",
        "library.config_util",
        "bitsandbytes",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    cases = json.loads(Path(source).read_text())
    path = Path(target)
    outcomes = json.loads(path.read_text()) if path.exists() else {}
    for name, case in cases.items():
        if name in outcomes:
            continue
        folder = Path(tempfile.mkdtemp(prefix="case"))
        places = {"{ASSETS}": str(ASSETS), "{OUT}": str(folder)}
        words = list(case["words"])
        for file, text in case.get("files", {}).items():
            content = text
            for mark, value in places.items():
                content = content.replace(mark, value)
            (folder / file).write_text(content, encoding="utf-8")
        for mark, value in places.items():
            words = [word.replace(mark, value) for word in words]
        start = time.perf_counter()
        outcomes[name] = run(case["script"], words, folder)
        print(f"{time.perf_counter() - start:5.1f}s {name}: {outcomes[name]}", flush=True)
        path.write_text(json.dumps(outcomes, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
