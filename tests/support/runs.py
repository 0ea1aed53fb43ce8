"""Trainings and questions in the same words for the double and for real checkouts of sd-scripts and musubi-tuner.

The double runs within this process, unless the launch is the subject. The real thing runs through the harness of this
project's developers (HINA_HARNESS, default ../shared/harness) where SD_SCRIPTS_HOME names a checkout.
"""

import dataclasses as dc
import functools
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import contract
from tests.support.children import VENV as CHILDREN
from tests.support.inside import DOUBLE, DOUBLE_MUSUBI, HARMLESS, checkout, single_spaces, train_here

ROOT = Path(__file__).parents[2]
HARNESS = Path(os.environ.get("HINA_HARNESS", ROOT.parent / "shared" / "harness"))
HARNESS_DIR = Path(os.environ.get("HARNESS_DIR", Path.home() / ".cache" / "hina-harness"))
VENV, MUSUBI_VENV = HARNESS_DIR / "venv", HARNESS_DIR / "musubi-venv"
TINY, DIT, MUSUBI = "run_tiny.py", "run_dit.py", "musubi_tiny.py"
LAUNCH = "hina_kohya.launch"
ACCELERATE = (
    "--cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1"
)
LAUNCHERS = {
    "python": "",
    "accelerate": f"-m accelerate.commands.launch {ACCELERATE}",
    "torchrun": "-m torch.distributed.run --standalone --nproc_per_node 2",
    "hina-kohya": f"-m hina_kohya.cli launch {ACCELERATE}",
}


def real_checkout():
    """The checkout that tests may use; None where it or the harness is missing."""
    home = os.environ.get("SD_SCRIPTS_HOME")
    return Path(home) if home and (HARNESS / "run_tiny.py").exists() and VENV.exists() else None


@dc.dataclass
class Report:
    """What a training left behind. `log` has single spaces, since sd-scripts' own breaks lines at the window."""

    rc: int
    log: str
    out: Path

    @property
    def weights(self):
        return self.out / "lora.safetensors"

    @functools.cached_property
    def meta(self):
        with self.weights.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(size)).get("__metadata__", {})

    @functools.cached_property
    def tensors(self):
        from safetensors.torch import load_file

        return load_file(self.weights)

    @property
    def bits(self):
        """Bytes of every saved tensor."""
        return {name: tensor.numpy().tobytes() for name, tensor in self.tensors.items()}

    @functools.cached_property
    def scalars(self):
        """{tag: values by step} from TensorBoard's files."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = {}
        for folder in {file.parent for file in (self.out / "tb").rglob("events.out.tfevents.*")}:
            events = EventAccumulator(str(folder)).Reload()
            found.update({tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]})
        return found

    @property
    def losses(self):
        return self.scalars["loss/current"]

    @property
    def groups(self):
        """What `tests.support.group_probe.AdamW` was given."""
        return json.loads((self.out / "groups.json").read_text())

    @property
    def events(self):
        """What `tests.support.order_probe` wrote down."""
        return (self.out / "events.txt").read_text(encoding="utf-8").splitlines()


@dc.dataclass
class Request:
    """A training; the fields are those of the command line, `plugins` are folders that a package was installed in."""

    network: str = "lycoris.kohya"
    network_args: tuple[str, ...] = ()
    optimizer: str = "AdamW"
    optimizer_args: tuple[str, ...] = ()
    steps: int = 4
    lr: str = "1e-3"
    extra: tuple[str, ...] = ()
    hooks: bool = False
    launch: str = "python"  # or another of LAUNCHERS
    script: str = "train_network.py"
    plugins: tuple[Path, ...] = ()

    def words(self):
        """network_args and optimizer_args as lists, with the preset that works on SD1.x in every LyCORIS."""
        network = list(self.network_args)
        ours = ("lycoris.kohya", "hina_kohya.lycoris", "hina_kohya.adlrns", "adlrns_probe")
        lycoris = self.network.endswith(ours) or "inner=lycoris.kohya" in network
        if lycoris and not any(word.startswith("preset=") for word in network):
            network.append("preset=attn-mlp")
        return network, list(self.optimizer_args)


def real_musubi():
    """The same for musubi-tuner and MUSUBI_HOME."""
    home = os.environ.get("MUSUBI_HOME")
    return Path(home) if home and (HARNESS / MUSUBI).exists() and MUSUBI_VENV.exists() else None


def joined(log):
    """A log as it was written: rich puts the source's line where it breaks a line of ours."""
    return re.sub(r"\b\w+\.py:\d+ ", "", log)


def release(home):
    """0.11 and later, or before: where the functions are, and what is logged, changed there."""
    return "0.11" if (home / "library" / "optimizer.py").exists() else "0.10"


class Double:
    name = "double"
    script: str | None = None  # in place of a request's
    more: tuple[str, ...] = ()

    def __init__(self, home=DOUBLE):
        self.home, self.release = home, release(home)

    def train(self, out, request, here=True):
        network, optimizer = request.words()
        request = dc.replace(request, script=self.script or request.script)
        words = ["--output_dir", out, "--logging_dir", out / "tb", "--max_train_steps", request.steps, *self.more]
        words += ["--learning_rate", request.lr, "--network_module", request.network, "--network_dim", 4]
        words += ["--optimizer_type", request.optimizer, "--seed", 42]
        words += ["--network_args", *network] if network else []
        words += ["--optimizer_args", *optimizer] if optimizer else []
        words = [str(word) for word in (*words, *request.extra)]
        run = train_here if here and request.launch == "python" else _apart
        return Report(*run(self.home, request, words, {**HARMLESS, "PROBE_FOLDER": str(out)}), out)

    def ask(self, question, *args, **kwargs):
        with checkout(self.home):
            return json.loads(contract.answer(json.dumps([question, args, kwargs])))


class DoubleMusubi(Double):
    name = "double"
    script = "musubi_tuner/wan_train_network.py"
    more = ("--dataset_config", "cached.toml")

    def __init__(self, home=DOUBLE_MUSUBI):
        self.home, self.release = home, "0.3"


@dc.dataclass(frozen=True)
class Kind:
    """A trainer, and how the harness runs it on tiny random models. network: its own module of LoRA."""

    tool: str
    words: tuple[str, ...]
    script: str
    network: str
    tree: str = "--tree"
    venv: Path = VENV


KINDS = {
    "sd": Kind(TINY, ("--trainer", "sd"), "train_network.py", "networks.lora"),
    "sdxl": Kind(TINY, ("--trainer", "sdxl"), "sdxl_train_network.py", "networks.lora"),
    "flux": Kind(TINY, ("--trainer", "flux"), "flux_train_network.py", "networks.lora_flux"),
    "sd3": Kind(TINY, ("--trainer", "sd3"), "sd3_train_network.py", "networks.lora_sd3"),
    **{
        name: Kind(DIT, (name,), f"{name}_train_network.py", f"networks.lora_{name}")
        for name in ("anima", "lumina", "hunyuan_image")
    },
    **{
        name: Kind(MUSUBI, (name,), f"{name}_train_network.py", f"networks.lora_{name}", "--musubi", MUSUBI_VENV)
        for name in ("zimage", "wan", "qwen_image")
    },
}


class Real:
    def __init__(self, folder, kind="sd", home=None):
        """`folder` gets this package's entry points, as if pip had installed it into the harness."""
        self.kind = KINDS[kind]
        self.name = "musubi-tuner" if self.kind.tool == MUSUBI else "sd-scripts"
        self.home = home or (real_musubi() if self.kind.tool == MUSUBI else real_checkout())
        self.release = release(self.home)
        self.worker = None
        self.installed = folder / "installed"
        metadata = importlib.metadata.distribution("hina-kohya")
        found = next(file for file in metadata.files or () if file.name == "entry_points.txt").locate()
        shutil.copytree(Path(found).parent, self.installed / Path(found).parent.name)

    def train(self, out, request, here=True):
        network, optimizer = request.words()
        words = ["--steps", request.steps, "--lr", request.lr, "--network_module", request.network]
        words += ["--optimizer_type", request.optimizer]
        words += ["--network_args", *network] if network else []
        words += ["--optimizer_args", *optimizer] if optimizer else []
        return self.run(out, words, request.extra, request.launch, request.hooks, request.plugins)

    def run(self, out, words, extra=(), launch="python", hooks=False, plugins=()):
        """The harness's tool with these words of its own, and `extra` for the trainer."""
        paths = os.pathsep.join(map(str, (ROOT, self.installed, *plugins)))
        command = [sys.executable, HARNESS / self.kind.tool, *self.kind.words, self.kind.tree, self.home, "--out", out]
        command += ["--pythonpath", paths, "--timeout", 600, "--env", f"PROBE_FOLDER={out}", *words]
        if launch == "hina-kohya":
            command += ["--python", self._hina_kohya()]
        elif launch != "python":
            command += ["--launcher", launch, "--num-processes", 2 if launch == "torchrun" else 1]
        command += ["--launch-module", LAUNCH] if hooks else []
        command += ["--save_state"] if "--save_state" in extra else []
        extra = [word for word in extra if word != "--save_state"]
        command += ["--", *extra] if extra else []
        run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        assert run.stdout, run.stderr[-3000:]
        report = json.loads(run.stdout)
        return Report(report["rc"], single_spaces(Path(report["log"]).read_text(errors="replace")), out)

    def hina_kohya(self, words):
        """A command of ours in the trainer's environment, which has to succeed; its output."""
        stubs = [HARNESS / "stubs"] if self.kind.tool == TINY else [HARNESS / "stubs_dit", HARNESS / "stubs"]
        paths = os.pathsep.join(map(str, (ROOT, self.installed, *stubs, self.home / "src")))
        environment = {**os.environ, **HARMLESS, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HARNESS_UNET": "tiny"}
        if self.kind.tool != TINY:
            hub = HARNESS_DIR / "assets" / "dit" / "hub"
            environment |= {"HARNESS_DIT": self.kind.words[0], "HF_HUB_CACHE": str(hub), "ACCELERATE_USE_CPU": "true"}
        command = [str(self.kind.venv / "bin" / "python"), "-m", "hina_kohya.cli", *map(str, words)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
        return single_spaces(run.stdout)

    def _hina_kohya(self):
        """In the place of the harness's Python: starts scripts by `hina-kohya launch`; leaves `-c` to Python."""
        script, python = self.installed.parent / "hina-kohya-launch", self.kind.venv / "bin" / "python"
        script.write_text(
            f'#!/bin/sh\n[ "$1" = -c ] && exec {python} "$@"\nexec {python} {LAUNCHERS["hina-kohya"]} "$@"\n'
        )
        script.chmod(0o755)
        return script

    def ask(self, question, *args, **kwargs):
        if self.worker is None:
            paths = os.pathsep.join(map(str, (self.home, self.home / "src", HARNESS / "stubs", ROOT)))
            self.worker = subprocess.Popen(
                [self.kind.venv / "bin" / "python", "-c", "from tests.kohya import contract; contract.serve()"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, **HARMLESS, "PYTHONPATH": paths},
            )  # fmt: skip
        self.worker.stdin.write(json.dumps([question, args, kwargs]) + "\n")
        self.worker.stdin.flush()
        line = next(line for line in self.worker.stdout if line.startswith(contract.MARK))
        return json.loads(line.removeprefix(contract.MARK))

    def close(self):
        if self.worker is not None:
            self.worker.stdin.close()
            self.worker.wait()


def _apart(home, request, words, environment):
    """The same in a process of its own, through a launcher: (exit status, log)."""
    command = [sys.executable, *LAUNCHERS[request.launch].split(), *(["-m", LAUNCH] if request.hooks else [])]
    paths = os.pathsep.join(map(str, (ROOT, home, *request.plugins, CHILDREN)))
    run = subprocess.run(
        [*command, str(home / request.script), *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300,
        env={**os.environ, **environment, "PYTHONPATH": paths},
    )  # fmt: skip
    return run.returncode, single_spaces(run.stdout)


OURS = "hina_kohya.optim.hina_adamw.HinaAdamW"
