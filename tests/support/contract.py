"""Questions about single functions of sd-scripts, asked of the double and of a checkout in the same words.

Each function imports from whatever checkout is first on sys.path and returns something that JSON can carry. `serve`
answers questions by line, so that one process of the harness's Python serves all tests.
"""

import contextlib
import importlib
import json
import os
import sys
import types
from argparse import Namespace
from pathlib import Path

import torch

from tests.kohya.double import tiny_models

MARK = "ANSWER "
ADAFACTOR = "transformers.optimization"


class Recorder(torch.optim.SGD):
    """Takes any argument and counts calls of `train`."""

    def __init__(self, params, lr, **options):
        super().__init__(params, lr=1.0 if lr is None else lr)
        self.options, self.trained = options, 0

    def train(self):
        self.trained += 1

    def eval(self):
        self.trained = -100


class RecorderScheduleFree(Recorder):
    pass


class Recorder8bit(Recorder):
    pass


class NotAnOptimizer:
    def __init__(self, params, lr):
        self.param_groups = [{"params": list(params), "lr": lr}]


def make_recorder(params, lr, **options):
    return Recorder(params, lr, **options)


@contextlib.contextmanager
def packages(present=(), absent=()):
    """Optional libraries as if installed (any attribute of theirs is `Recorder`) or not."""
    names = (*present, *absent, *(f"{name}.experimental" for name in present))
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = None
    for name in present:
        module = types.ModuleType(name)
        module.__getattr__ = lambda attribute: Recorder
        module.optim = module.experimental = module
        sys.modules[name] = sys.modules[f"{name}.experimental"] = module
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def settings(**given):
    return Namespace(**{
        "optimizer_type": "", "optimizer_args": None, "learning_rate": 1e-3, "unet_lr": None, "text_encoder_lr": None,
        "use_8bit_adam": False, "use_lion_optimizer": False, "fused_backward_pass": False, "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1, "max_train_steps": 10, "network_train_unet_only": False,
        "lr_scheduler": "constant", "lr_scheduler_type": "", "lr_scheduler_args": None, "lr_warmup_steps": 0,
        "lr_decay_steps": 0, "lr_scheduler_num_cycles": 1, "lr_scheduler_power": 1, "lr_scheduler_timescale": None,
        "lr_scheduler_min_lr_ratio": None, **given,
    })  # fmt: skip


def optimizer(optimizer_type, optimizer_args=None, groups=True, present=(), absent=(), **given):
    """What get_optimizer makes of it."""
    from library import train_util

    args = settings(optimizer_type=optimizer_type, optimizer_args=optimizer_args, **given)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    params = [{"params": {"a": weight}.values(), "lr": 0.5}] if groups else []
    with packages(present, absent):
        name, text, made = train_util.get_optimizer(args, params)
    return {
        "name": name, "args": text, "class": f"{type(made).__module__}.{type(made).__name__}",
        "options": {key: repr(value) for key, value in getattr(made, "options", {}).items()},
        "defaults": {key: repr(value) for key, value in getattr(made, "defaults", {}).items()},
        "lr": made.param_groups[0]["lr"], "trained": getattr(made, "trained", None),
        "learning_rate": args.learning_rate, "lr_scheduler": args.lr_scheduler,
    }  # fmt: skip


def rates(optimizer_type="AdamW", steps=5, processes=1, present=(), **given):
    """The learning rate before each step, and what training and evaluation mode call."""
    from library import train_util

    args = settings(optimizer_type=optimizer_type, **given)
    with packages(present):
        made = train_util.get_optimizer(args, [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0}])[2]
    train, evaluate = train_util.get_optimizer_train_eval_fn(made, args)
    scheduler = train_util.get_scheduler_fix(args, made, processes)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        made.step()
        scheduler.step()
    train()
    evaluate()
    return {"rates": found, "trained": getattr(made, "trained", None), "scheduler": type(scheduler).__name__}


def config(folder, toml, *words, file="config"):
    """The arguments that result from a TOML file and a command line."""
    import train_network
    from library import train_util

    Path(folder, "config.toml").write_text(toml, encoding="utf-8")
    argv, sys.argv = sys.argv, ["train_network.py", "--config_file", str(Path(folder, file)), *words]
    try:
        parser = train_network.setup_parser()
        args = train_util.read_config_from_file(parser.parse_args(), parser)
    finally:
        sys.argv = argv
    return {key: value for key, value in vars(args).items() if isinstance(value, str | int | float | list)}


def groups(module, kind="sd", rates=(None, None, 1e-3), **kwargs):
    """The groups that a network hands to the optimizer, and their descriptions."""
    torch.manual_seed(0)
    encoders, unet = tiny_models.build("sd" if kind == "sdxl" else kind)
    if kind == "sdxl":
        encoders.append(tiny_models.CLIPTextModel())
    text_encoder = encoders if len(encoders) > 1 else encoders[0]
    created = importlib.import_module(module).create_network(1.0, 4, 1, None, text_encoder, unet, **kwargs)
    created.apply_to(text_encoder, unet, True, True)
    several = hasattr(created, "prepare_optimizer_params_with_multiple_te_lrs")
    prepare = created.prepare_optimizer_params_with_multiple_te_lrs if several else created.prepare_optimizer_params
    made = prepare(*rates)
    found, descriptions = made if isinstance(made, tuple) else (made, None)
    return {
        "several": several,
        "descriptions": descriptions,
        "groups": [
            {
                "keys": sorted(group),
                "lr": group.get("lr"),
                "names": list(group["params"].mapping) if hasattr(group["params"], "mapping") else None,
                "count": len(group["params"]),
            }
            for group in found
        ],
        "saved": sorted(created.state_dict()),
    }


def logs(lrs, descriptions, optimizer_type="AdamW", d=None, unet_only=False):
    """What generate_step_logs writes for these rates of the optimizer's groups."""
    import train_network

    group = {} if d is None else {"d": d}
    scheduled = types.SimpleNamespace(param_groups=[{"lr": lr, **group} for lr in lrs])
    scheduler = types.SimpleNamespace(get_last_lr=lambda: lrs, optimizers=[scheduled])
    args = settings(optimizer_type=optimizer_type, network_train_unet_only=unet_only)
    trainer = train_network.NetworkTrainer()
    return trainer.generate_step_logs(args, 1.0, 1.0, scheduler, descriptions, scheduled)


def outputs(module, file, timestep, dim=None, alpha=None, **kwargs):
    """What the model of the double says with this file applied; without `dim`, as --dim_from_weights."""
    torch.manual_seed(0)
    (encoder,), unet = tiny_models.build("sd")
    creators = importlib.import_module(module)
    if dim is None:
        network, _ = creators.create_network_from_weights(1.0, file, None, encoder, unet, **kwargs)
    else:
        network = creators.create_network(1.0, dim, alpha, None, encoder, unet, **kwargs)
    network.apply_to(encoder, unet, True, True)
    network.load_weights(file)
    return unet(*tiny_models.example(encoder, timestep)).flatten().tolist()


def many(question, calls):
    """The answers to one question, asked with several (arguments, keywords)."""
    return [json.loads(answer(json.dumps([question, args, kwargs]))) for args, kwargs in calls]


# The same of musubi-tuner


def musubi_optimizer(optimizer_type, optimizer_args=None, present=(), absent=(), **given):
    """What NetworkTrainer.get_optimizer makes of it, and what its last two values call."""
    from musubi_tuner.training.trainer_base import NetworkTrainer

    args = settings(optimizer_type=optimizer_type, optimizer_args=optimizer_args, **given)
    groups = [{"params": {"a": torch.nn.Parameter(torch.ones(2, 2))}.values(), "lr": 0.5}]
    with packages(present, absent):
        name, text, made, train, evaluate = NetworkTrainer().get_optimizer(args, groups)
    trained = getattr(made, "trained", None)
    train()
    after = getattr(made, "trained", None)
    evaluate()
    return {
        "name": name, "args": text, "class": f"{type(made).__module__}.{type(made).__name__}",
        "options": {key: repr(value) for key, value in getattr(made, "options", {}).items()},
        "lr": made.param_groups[0]["lr"], "trained": [trained, after, getattr(made, "trained", None)],
        "learning_rate": args.learning_rate, "lr_scheduler": args.lr_scheduler,
    }  # fmt: skip


def musubi_network(module, unet, **kwargs):
    import musubi_tuner

    sys.path.append(str(Path(musubi_tuner.__file__).parent))
    creators = importlib.import_module(module)
    words = {"neuron_dropout": None} if hasattr(creators, "create_arch_network") else {}
    create = getattr(creators, "create_arch_network" if words else "create_network")
    network = create(1.0, 4, 1, None, None, unet, **words, **kwargs)
    network.apply_to(None, unet, apply_text_encoder=False, apply_unet=True)
    return creators, network


def musubi_groups(module, lr=1e-3, **kwargs):
    """The groups that a network hands to the optimizer, and their descriptions."""
    from tests.kohya.double_musubi.musubi_tuner import tiny_wan

    creators, network = musubi_network(module, tiny_wan.build(), **kwargs)
    prepared = network.prepare_optimizer_params(unet_lr=lr)
    found, descriptions = prepared if isinstance(prepared, tuple) else (prepared, None)
    return {
        "creators": sorted(name for name in vars(creators) if name.startswith("create_")),
        "pair": isinstance(prepared, tuple),
        "descriptions": descriptions,
        "groups": [
            {
                "lr": group.get("lr"),
                "names": sorted(group["params"].mapping) if hasattr(group["params"], "mapping") else None,
            }
            for group in found
        ],
        "saved": sorted(network.state_dict()),
    }


def musubi_merged(module):
    """Whether a network of weights comes alone, and what it does to the model: the same as it does unmerged."""
    from tests.kohya.double_musubi.musubi_tuner import tiny_wan

    unet = tiny_wan.build()
    creators, network = musubi_network(module, unet)
    for param in network.parameters():
        torch.nn.init.normal_(param, std=0.2)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    other = tiny_wan.build()
    created = creators.create_arch_network_from_weights(1.0, weights, unet=other, for_inference=True)
    if not isinstance(created, tuple):
        created.merge_to(None, other, weights, torch.float32, "cpu")
    x, text = torch.ones(1, tiny_wan.CHANNELS, 1, 4, 4), [torch.ones(5, tiny_wan.WIDTH)]
    outputs = [model(x, torch.tensor([500.0]), text, 16)[0] for model in (tiny_wan.build(), unet, other)]
    return {
        "alone": not isinstance(created, tuple),
        "acts": bool((outputs[0] - outputs[1]).abs().max() > 1e-3),
        "same": bool((outputs[1] - outputs[2]).abs().max() < 1e-5),
    }


def musubi_noise(count=64, **given):
    """Timesteps, and the share of noise that a trainer mixed in for each."""
    from musubi_tuner.training.trainer_base import NetworkTrainer

    args = settings(**{
        "timestep_sampling": "shift", "discrete_flow_shift": 3.0, "sigmoid_scale": 1.0, "weighting_scheme": "none",
        "min_timestep": None, "max_timestep": None, "preserve_distribution_shape": False, **given,
    })  # fmt: skip
    torch.manual_seed(0)
    noise, latents = torch.randn(count, 4, 1, 4, 4), torch.randn(count, 4, 1, 4, 4)
    noisy, timesteps = NetworkTrainer().get_noisy_model_input_and_timesteps(
        args, noise, latents, None, None, torch.device("cpu"), torch.float32
    )
    mixed = (noise - latents).flatten(1)
    shares = ((noisy - latents).flatten(1) * mixed).sum(1) / mixed.square().sum(1)
    return {"timesteps": timesteps.tolist(), "shares": shares.tolist()}


def musubi_logs(lrs, descriptions):
    """What generate_step_logs writes for these rates of the optimizer's groups."""
    from musubi_tuner.training.trainer_base import NetworkTrainer

    scheduled = types.SimpleNamespace(param_groups=[{"lr": lr} for lr in lrs])
    scheduler = types.SimpleNamespace(get_last_lr=lambda: lrs, optimizers=[scheduled])
    return NetworkTrainer().generate_step_logs(settings(optimizer_type="AdamW"), 1.0, 1.0, scheduler, descriptions)


def musubi_config(folder, toml, *words):
    """The arguments that result from a TOML file and a command line."""
    from musubi_tuner.training import parser_common

    Path(folder, "config.toml").write_text(toml, encoding="utf-8")
    argv, sys.argv = sys.argv, ["wan_train_network.py", "--config_file", str(Path(folder, "config")), *words]
    try:
        parser = parser_common.setup_parser_common()
        args = parser_common.read_config_from_file(parser.parse_args(), parser)
    finally:
        sys.argv = argv
    return {key: value for key, value in vars(args).items() if isinstance(value, str | int | float | list)}


MUSUBI = (
    musubi_optimizer, musubi_groups, musubi_merged, musubi_noise, musubi_logs, musubi_config,
)  # fmt: skip
QUESTIONS = {
    function.__name__: function for function in (optimizer, rates, config, groups, logs, outputs, many, *MUSUBI)
}


def answer(line):
    """One question as JSON [name, arguments, keywords] to its answer as JSON; an exception is an answer, too."""
    name, args, kwargs = json.loads(line)
    try:
        return json.dumps(QUESTIONS[name](*args, **kwargs))
    except (Exception, SystemExit) as error:
        return json.dumps({"error": type(error).__name__, "message": str(error)})


def serve():
    """Answers until there are no more questions; on a copy of stdin, since `exit()` in sd-scripts closes that."""
    with open(os.dup(0), encoding="utf-8") as questions:
        for line in questions:
            print(MARK + answer(line), flush=True)
