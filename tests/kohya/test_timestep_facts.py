"""The timestep facts of `trainers` against the trainers' own source: all models are there, and are given what we say.

What a script hands to its model is computed here from the script's own expressions, for noise of 0.3 and 0.9. Needs
SD_SCRIPTS_HOME or MUSUBI_HOME; skipped where there is none.
"""

import ast
import os
from pathlib import Path

import pytest
import torch

from hina_kohya.trainers import syntax
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

SHARES = torch.tensor([0.3, 0.9])
FUNCTIONS = ("call_unet", "call_dit", "_call_dit", "_call_dit_per_sample", "get_noise_pred_and_target")
CALLED = {"unet", "model", "transformer", "dit", "anima"}
# What each script trains.
MODELS = {
    SD_SCRIPTS.name: {
        "train_network": "UNet2DConditionModel", "sdxl_train_network": "SdxlUNet2DConditionModel",
        "sd3_train_network": "MMDiT", "flux_train_network": "Flux", "anima_train_network": "Anima",
        "lumina_train_network": "NextDiT", "hunyuan_image_train_network": "HYImageDiffusionTransformer",
    },
    MUSUBI.name: {
        "wan_train_network": "WanModel", "qwen_image_train_network": "QwenImageTransformer2DModel",
        "zimage_train_network": "ZImageTransformer2DModel", "flux_2_train_network": "Flux2",
        "flux_kontext_train_network": "Flux", "fpack_train_network": "HunyuanVideoTransformer3DModelPacked",
        "hv_train_network": "HYVideoDiffusionTransformer",
        "hv_1_5_train_network": "HunyuanVideo_1_5_DiffusionTransformer",
        "kandinsky5_train_network": "DiffusionTransformer3D", "krea2_train_network": "SingleStreamDiT",
        "ideogram4_train_network": "Ideogram4Transformer",
        "hidream_o1_train_network": "Qwen3VLForConditionalGeneration",
    },
}  # fmt: skip
TRAINERS = {
    SD_SCRIPTS.name: (SD_SCRIPTS, "SD_SCRIPTS_HOME", "."),
    MUSUBI.name: (MUSUBI, "MUSUBI_HOME", "src/musubi_tuner"),
}
SCRIPTS = [(trainer, script) for trainer, models in MODELS.items() for script in models]


def home(trainer):
    _, variable, below = TRAINERS[trainer]
    if not os.environ.get(variable):
        pytest.skip(f"needs {variable}")
    return Path(os.environ[variable]) / below


def parameters(root, name):
    """Of the forward of every class of that name in the checkout."""
    for file in root.rglob("*.py"):
        if f"class {name}(" not in file.read_text(encoding="utf-8"):
            continue
        for node in ast.walk(syntax.tree(file)):
            if isinstance(node, ast.ClassDef) and node.name == name:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name == "forward":
                        yield [each.arg for each in (*method.args.args[1:], *method.args.kwonlyargs)]


class Bare(ast.NodeTransformer):
    """Without moves to devices and dtypes, and without the choice of samples: one sample at a time is computed."""

    def visit_Call(self, node):
        self.generic_visit(node)
        return node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "to" else node

    def visit_Subscript(self, node):
        self.generic_visit(node)
        return node.value if named(node.slice) else node


def ways(statements, names):
    """Every way through the assignments to `names`, as lists of statements, in order."""
    found = [[]]
    for statement in statements:
        if assigned(statement) & names:
            found = [[*way, statement] for way in found]
        elif isinstance(statement, (ast.If, ast.For, ast.With)):
            branches = [statement.body, *([statement.orelse] if isinstance(statement, ast.If) else [])]
            within = {ast.unparse(ast.Module(way, [])): way for each in branches for way in ways(each, names)}
            found = [[*way, *more] for way in found for more in within.values()]
    return found


def assigned(statement):
    """The name that a statement binds."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    return {target.id} if isinstance(target, ast.Name) else set()


def named(expression):
    return {each.id for each in ast.walk(expression) if isinstance(each, ast.Name)}


def sources(function, expression):
    """Names that a value depends on, within a function; noise and its timesteps are where that ends."""
    names, before = named(bare(expression, "eval")), set()
    while names != before:
        before = set(names)
        for node in ast.walk(function):
            if assigned(node) & names:
                names |= named(bare(node.value, "eval"))
    return names


def values(function, expression, share):
    """An expression of a function for one sample of that noise, computed by every way through it."""
    for way in ways(function.body, sources(function, expression)):
        known = {"torch": torch, "timesteps": share * 1000, "sigmas": share[:, None, None, None]}
        for statement in way:
            if assigned(statement) - known.keys() or named(statement.value) >= assigned(statement):
                exec(compile(bare(statement, "exec"), "assignment", "exec"), known)
        if named(expression) <= known.keys():  # or the call is on another way
            yield eval(compile(bare(expression, "eval"), "argument", "eval"), known)


def bare(node, mode):
    return ast.fix_missing_locations(Bare().visit(ast.parse(ast.unparse(node), mode=mode)))


def handed(script, forward, argument, share):
    """The values of the timestep argument in every call of the model, for a sample of that noise."""
    for function in ast.walk(syntax.tree(script)):
        if isinstance(function, ast.FunctionDef) and function.name in FUNCTIONS:
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and named(call.func) & CALLED and isinstance(call.func, ast.Name):
                    given = dict(zip(forward, call.args, strict=False)) | {
                        each.arg: each.value for each in call.keywords
                    }
                    yield from values(function, given[argument], share)


@pytest.mark.parametrize("family", TRAINERS)
def test_every_script_and_every_model_is_known(family):
    facts, _, _ = TRAINERS[family]
    scripts = {path.stem for path in home(family).glob("*_train_network.py")} | (
        {"train_network"} if family == SD_SCRIPTS.name else set()
    )
    assert scripts == set(MODELS[family])
    assert set(MODELS[family].values()) == set(facts.timesteps)


@pytest.mark.parametrize(("family", "script"), SCRIPTS, ids=[f"{trainer}-{script}" for trainer, script in SCRIPTS])
def test_a_model_is_given_what_we_say(family, script):
    root, model = home(family), MODELS[family][script]
    fact = TRAINERS[family][0].timesteps[model]
    forwards = [found for found in parameters(root, model) if fact.argument in found]
    assert forwards
    for share in SHARES:
        expected = fact.largest * (1 - share if fact.falls else share)
        found = list(handed(root / f"{script}.py", forwards[0], fact.argument, share[None]))
        assert found
        for value in found:
            torch.testing.assert_close(value.flatten().float(), expected[None], rtol=0, atol=0.002 * fact.largest)
