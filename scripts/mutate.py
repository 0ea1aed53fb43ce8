#!/usr/bin/env python3
"""Breaks the package on purpose, one line at a time, and asks whether the tests notice.

Works on a copy in a temporary folder; the checkout is never written to. Exit status 1 if a mutant survives.

    python scripts/mutate.py                  # all of them, about two minutes
    python scripts/mutate.py --only anchor    # those whose name contains "anchor"
"""

import argparse
import dataclasses as dc
import os
import shutil
import sys
import tempfile
import time
from importlib import import_module
from multiprocessing import connection, get_context
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START = "fork" if sys.platform == "linux" else "spawn"
# What tests import besides this package takes seconds: once, before the forks.
IMPORTS = ("torch", "bitsandbytes", "hypothesis", "xdist.plugin", "safetensors.torch")


@dc.dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        "slab-wide sum",
        "numerics/reduce.py",
        "return x.sum(dim=_MATRIX, keepdim=True)",
        "return x.sum().expand(*x.shape[:-2], 1, 1)",
        "tests/techniques/test_invariants.py",
    ),
    Mutant(
        "wrong beta in a lerp",
        "techniques/adam.py",
        "m.lerp(g, 1 - self.beta1)",
        "m.lerp(g, self.beta1)",
        "tests/core/test_adamw_equality.py",
    ),
    Mutant(
        "multiply and add instead of lerp",
        "techniques/adam.py",
        "m.lerp(g, 1 - self.beta1)",
        "m * self.beta1 + g * (1 - self.beta1)",
        "tests/core/test_adamw_equality.py",
    ),
    Mutant(
        "casting load",
        "core/optimizer.py",
        "self.state = defaultdict(dict, fitting.state)",
        "self.state = defaultdict(dict, {p: {k: v.to(p.dtype) if hasattr(v, 'to') else v for k, v in e.items()}"
        " for p, e in fitting.state.items()})",
        "tests/core/test_resume.py",
    ),
    Mutant(
        "state by position instead of by name",
        "core/state/checkpoint.py",
        "return [by_name[name] for name in names]",
        "return list(by_name.values())",
        "tests/core/test_resume.py",
    ),
    Mutant(
        "swapped roles",
        "parameters/role_table.py",
        '"lora_down.weight": _LORA_DOWN,',
        '"lora_down.weight": _LORA_UP,',
        "tests/parameters/test_roles.py",
    ),
    Mutant(
        "two adapters of a module taken for one",
        "parameters/roles.py",
        "modules[member.module, member.adapter].append(i)",
        'modules[member.module, ""].append(i)',
        "tests/parameters/test_roles_elsewhere.py",
    ),
    Mutant(
        "PEFT's LoKr read as LyCORIS's",
        "parameters/role_table.py",
        'zero_init=name in ("lokr_w1", "lokr_w1_a")',
        "zero_init=role.zero_init",
        "tests/parameters/test_roles_elsewhere.py",
    ),
    Mutant(
        "LoRA+ on embeddings",
        "parameters/role_table.py",
        "kind=Kind.EMBEDDING",
        "kind=Kind.FACTOR",
        "tests/optim/test_peft.py",
    ),
    Mutant(
        "state for a frozen base model",
        "core/parameter.py",
        "idle = is_frozen(param)",
        "idle = False and is_frozen(param)",
        "tests/core/test_frozen.py",
    ),
    Mutant(
        "dropped anchor",
        "techniques/spd.py",
        'return p - state["anchor"] if self.anchored else p',
        "return p",
        "tests/techniques/test_against_oracles.py",
    ),
    Mutant(
        "anchor taken again on resume",
        "core/state/slab.py",
        "part[row].copy_(saved[name].view(part[row].shape))",
        'part[row].copy_(saved[name].view(part[row].shape)) if "anchor" not in self.key else None',
        "tests/core/test_resume.py",
    ),
    Mutant(
        "ADOPT reads its own gradient",
        "techniques/adopt.py",
        "n = (s.grad / v.sqrt()",
        "n = (s.grad / (v + s.grad.square()).sqrt()",
        "tests/techniques/test_against_oracles.py",
    ),
    Mutant(
        "truncation instead of stochastic rounding",
        "numerics/rounding.py",
        "random_bits16(seed, x.shape, start).bitwise_and_(0xFFFF).add_(x.contiguous().view(torch.int32))",
        "x.contiguous().view(torch.int32).clone()",
        "tests/core/test_codec.py",
    ),
    Mutant(
        "blocks that straddle matrices",
        "core/state/codec.py",
        "return x.unflatten(1, (blocks, size))",
        "return x.reshape(-1, blocks, size).roll(1, 0)",
        "tests/core/test_codec.py",
    ),
    Mutant(
        "a zero code for v",
        "numerics/companding.py",
        "root = code.to(scale.dtype).add_(UNSIGNED_SKIPPED + 1)",
        "root = code.to(scale.dtype)",
        "tests/core/test_codec.py",
    ),
    Mutant(
        "partner read after its step",
        "core/coupling.py",
        "return self.tables[shape][index[rows]]",
        "return self.publish() or self.tables[shape][index[rows]]",
        "tests/techniques/test_against_oracles.py",
    ),
    Mutant(
        "LoRA+ applied twice",
        "core/parameter.py",
        "if not (splits and each.splits_lr)",
        "if each",
        "tests/techniques/test_invariants.py",
    ),
    Mutant(
        "a host synchronisation in a step",
        "techniques/cautious.py",
        "return s.but(update=masks",
        "float(s.update.sum()); return s.but(update=masks",
        "tests/core/test_cost.py",
    ),
    Mutant(
        "LoRA+ on the factor that does not start at zero",
        "trainers/groups.py",
        "return (role.zero_init and ",
        "return (not role.zero_init and ",
        "tests/kohya/test_groups.py",
    ),
    Mutant(
        "LoRA+ twice",
        "trainers/groups.py",
        "len(rates[member.module, member.adapter]) == 1",
        "len(rates[member.module, member.adapter]) >= 1",
        "tests/kohya/test_groups.py",
    ),
    Mutant(
        "a scale that decays",
        "trainers/groups.py",
        'settings["weight_decay"] = 0.0 if part.still else options.weight_decay',
        'settings["weight_decay"] = options.weight_decay',
        "tests/kohya/test_groups.py",
    ),
    Mutant(
        "a TypeError that sd-scripts swallows",
        "trainers/networks.py",
        "raise PluginError(",
        "raise TypeError(",
        "tests/kohya/test_groups.py",
    ),
    Mutant(
        "hooks that stay",
        "trainers/bindings.py",
        "setattr(module, name, vars(module)[name].__wrapped__)",
        "pass",
        "tests/kohya/test_hooks.py",
    ),
    Mutant(
        "a torque that forgets the bias correction",
        "techniques/adam.py",
        "m = s.leave(m, g, correction1)",
        "m = s.leave(m, g, 1.0)",
        "tests/techniques/test_dual_momentum.py",
    ),
    Mutant(
        "a long average of the wrong thing",
        "techniques/dual_momentum.py",
        "lerp(incoming, ",
        "lerp(momentum, ",
        "tests/techniques/test_dual_momentum.py",
    ),
    Mutant(
        "Newton-Schulz of the wrong polynomial",
        "numerics/newton_schulz.py",
        "beta=B, alpha=C",
        "beta=C, alpha=B",
        "tests/numerics/test_newton_schulz.py",
    ),
    Mutant(
        "a norm over the bucket",
        "numerics/newton_schulz.py",
        "x / mat_norm(x)",
        "x / x.norm()",
        "tests/numerics/test_newton_schulz.py",
    ),
    Mutant(
        "Muon by the shorter side",
        "numerics/neurons.py",
        "torch.maximum(extent.length, extent.width)",
        "torch.minimum(extent.length, extent.width)",
        "tests/techniques/test_muon.py",
    ),
    Mutant(
        "NorMuon by the rows of a wide matrix",
        "numerics/neurons.py",
        "wide = x.shape[-2] < x.shape[-1]",
        "wide = x.shape[-2] > x.shape[-1]",
        "tests/techniques/test_muon.py",
    ),
    Mutant(
        "an average of squares that freezes in 8 bits",
        "numerics/companding.py",
        "add_(noise, alpha=2.0**-16)",
        "add_(noise, alpha=0.0)",
        "tests/core/test_eight_bit.py",
    ),
    Mutant(
        "a matrix with a NaN that is stepped",
        "core/stepping.py",
        "+ 1, _squares_are_finite(grad)",
        "+ 1, mat_norm(grad).nan_to_num() >= 0",
        "tests/optim/test_classes.py",
    ),
    Mutant(
        "entries without a gradient that count",
        "numerics/masks.py",
        "kept = count.lerp(mat_sum(sign), 0.5)",
        "kept = count.lerp(mat_sum(sign), 0.5) * count / update[0].numel()",
        "tests/optim/test_classes.py",
    ),
    Mutant(
        "a frame for what its partner reads",
        "core/frames.py",
        "and partners.isdisjoint(indices)",
        "",
        "tests/core/test_frames.py",
    ),
    Mutant(
        "a checkpoint's schedule that goes on in silence",
        "trainers/schedulers.py",
        "optimizer.register_step_pre_hook(",
        "(",
        "tests/kohya/test_schedulers.py",
    ),
    Mutant(
        "CAME without clipping",
        "techniques/came.py",
        "self.clip_threshold).clamp_(min=1)",
        "self.clip_threshold)",
        "tests/techniques/test_came.py",
    ),
    Mutant(
        "CAME's confidence of the wrong residual",
        "techniques/came.py",
        "means((u - m).square_())",
        "means(u.square())",
        "tests/techniques/test_came.py",
    ),
    Mutant(
        "a mask that reaches level 0",
        "techniques/automagic_mask.py",
        "clamp_(1, top)",
        "clamp_(0, top)",
        "tests/techniques/test_automagic_mask.py",
    ),
    Mutant(
        "agreement below zero makes it cautious twice",
        "techniques/contextual_cautious.py",
        "c.clamp(min=0)",
        "c",
        "tests/techniques/test_contextual_cautious.py",
    ),
    Mutant(
        "a spike that raises its own limit",
        "techniques/edge_suppression.py",
        "norm * shrink, weight",
        "norm, weight",
        "tests/techniques/test_edge_suppression.py",
    ),
    Mutant(
        "height for width",
        "techniques/spatial_frequency.py",
        "height=member.shape[2], width=member.shape[3]",
        "height=member.shape[3], width=member.shape[2]",
        "tests/techniques/test_spatial_frequency.py",
    ),
    Mutant(
        "a window that is not yet full",
        "techniques/temporal_frequency.py",
        "s.step > window",
        "s.step >= window",
        "tests/techniques/test_temporal_frequency.py",
    ),
    Mutant(
        "singular values of the old factor",
        "techniques/rank_penalty.py",
        "b = s.param.double()",
        "b = s.before.double()",
        "tests/techniques/test_rank_penalty.py",
    ),
    Mutant(
        "state checked against the parameter's shape",
        "core/state/checkpoint.py",
        "technique.slot_shape(slot, *matrix_shape(param.shape), beside)",
        "matrix_shape(param.shape)",
        "tests/core/test_resume.py",
    ),
    Mutant(
        "a patch in other line endings than the file's",
        "patch/block.py",
        "if end > 0 and data[end - 1 : end]",
        "if end < 0 and data[end - 1 : end]",
        "tests/kohya/test_patching.py",
    ),
    Mutant(
        "a patch beside other lines of ours",
        "patch/states.py",
        "return heads[0] if heads and not block.lines_of_ours(heads[0]) else None",
        "return heads[0] if heads else None",
        "tests/kohya/test_patching.py",
    ),
    Mutant(
        "a patch whose trial nobody waits for",
        "patch/trial.py",
        "if outcome:",
        "if outcome or reason:",
        "tests/kohya/test_patch_trial.py::test_what_fails_without_our_lines_is_not_said_to_be_ours",
    ),
    Mutant(
        "a patch that is tried by what is installed",
        "patch/trial_process.py",
        "sys.meta_path.insert(0, Copies(places))",
        "sys.meta_path.append(Copies(places))",
        "tests/kohya/test_patch_trial.py",
    ),
    Mutant(
        "a rate that is found and may fall",
        "techniques/auto_rate.py",
        "torch.fmax(d.amax().clamp(min=self.d0), bound)",
        "torch.fmax(torch.full_like(bound, self.d0), bound)",
        "tests/techniques/test_auto_rate.py",
    ),
    Mutant(
        "a start that is read again on resume",
        "core/starting.py",
        "is_zero if start is None else start",
        "is_zero",
        "tests/techniques/test_auto_rate.py",
    ),
    Mutant(
        "rates of groups that are no ratios",
        "techniques/auto_rate.py",
        "q.sum() * eta.amax() / (size * eta).sum()",
        "q.sum() / size.sum()",
        "tests/techniques/test_auto_rate.py",
    ),
    Mutant(
        "a patch whose cut-off run looks like a reinstallation",
        "patch/swap.py",
        "if left and kept.exists()",
        "if False and kept.exists()",
        "tests/kohya/test_patch_kill.py",
    ),
    Mutant(
        "a class's default argument that its technique never hears of",
        "optim/resolving.py",
        "if name in given or row.default is not DECLARED:",
        "if name in given:",
        "tests/optim/test_argument_table.py",
    ),
    Mutant(
        "an argument of the class above instead of the class's own",
        "optim/arguments.py",
        "min(distances) < nearest[row.name][0]",
        "min(distances) > nearest[row.name][0]",
        "tests/optim/test_argument_table.py",
    ),
    Mutant(
        "an argument for the rest that takes LoRA-Muon's place",
        "optim/resolving.py",
        "for other in asked if other not in beside)",
        "for other in asked)",
        "tests/optim/test_family.py::test_which_flags_take_the_place_of_lora_muon",
    ),
    Mutant(
        "LoRA-Muon that a large alpha slows down",
        "core/bucket.py",
        "max(1.0, scale**-0.5)",
        "scale**-0.5",
        "tests/techniques/test_rank_free.py::test_lora_muon_makes_up_for_half_of_a_small_alpha",
    ),
]


class Trial:
    """A mutant in a folder of its own, and its tests in a process of their own."""

    def __init__(self, mutant: Mutant, folder: Path):
        self.mutant, self.folder, self._start = mutant, folder, time.perf_counter()
        self._file, self._output = folder / "hina_kohya" / mutant.file, folder / "output"
        self._source = self._file.read_text(encoding="utf-8")
        if (count := self._source.count(mutant.old)) != 1:
            raise SystemExit(f"{mutant.name}: {mutant.old!r} stands {count} times in {mutant.file}")
        self._file.write_text(self._source.replace(mutant.old, mutant.new), encoding="utf-8")
        self.process = get_context(START).Process(target=run_tests, args=(mutant.tests, folder, self._output))
        self.process.start()

    def survived(self) -> bool:
        self.process.join()
        self.seconds = time.perf_counter() - self._start
        self._file.write_text(self._source, encoding="utf-8")
        if self.process.exitcode not in (0, 1):
            output = self._output.read_text(encoding="utf-8", errors="replace")[-4000:]
            raise SystemExit(f"{self.mutant.name}: the tests did not run\n{output}")
        return self.process.exitcode == 0


def run_tests(tests: str, folder: Path, output: Path) -> None:
    """Ends with pytest's exit status; whatever is said goes into ``output``."""
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.path[0] = os.environ["PYTHONPATH"] = str(folder)
    # Two mutants within a second, of one length: by its date and size, what was compiled of the first is the second.
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", tests])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time, each in a copy of its own")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    waiting, ended, survivors = list(chosen), 0, 0
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in IMPORTS if START == "fork" else ():
        import_module(name)
    with tempfile.TemporaryDirectory() as temporary:
        folders = [copied(Path(temporary) / str(job)) for job in range(options.jobs)]
        trials: dict[int, Trial] = {}
        while waiting or trials:
            while waiting and folders:
                trial = Trial(waiting.pop(0), folders.pop())
                trials[trial.process.sentinel] = trial
            for sentinel in connection.wait(list(trials)):
                trial = trials.pop(int(sentinel))  # type: ignore[call-overload]
                alive = trial.survived()
                folders.append(trial.folder)
                ended, survivors = ended + 1, survivors + alive
                verdict = "SURVIVED" if alive else "killed"
                print(f"[{ended}/{len(chosen)}] {verdict:8s} {trial.mutant.name} ({trial.seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants killed")
    return bool(survivors)


def copied(folder: Path) -> Path:
    folder.mkdir()
    for name in ("hina_kohya", "tests", "benchmarks", "configs", "docs", "patches", "scripts", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


if __name__ == "__main__":
    sys.exit(main())
