"""Double of sd-scripts' library/optimizer.py, written from SD_SCRIPTS.md: what a plugin meets there and no more."""

import ast
import importlib
import logging
import math
import operator

import torch

logger = logging.getLogger(__name__)

SGD_8BIT = "sgdnesterov8bit"
BITSANDBYTES = {name.lower(): f"optim.{name}" for name in (
    "AdamW8bit", "Lion8bit", "PagedAdamW8bit", "PagedLion8bit", "PagedAdamW", "PagedAdamW32bit",
)} | {SGD_8BIT: "optim.SGD8bit"}  # fmt: skip
D_ADAPTATION = {name.lower(): name for name in ("DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD")}
D_ADAPTATION |= {
    "dadaptation": "experimental.DAdaptAdamPreprint",
    "dadaptadampreprint": "experimental.DAdaptAdamPreprint",
    "dadaptadanip": "experimental.DAdaptAdanIP",
}
SCHEDULE_FREE = {name.lower(): name for name in ("RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree")}
# In sd-scripts' order of asking: whether it is meant, the package it needs, and the classes it knows there.
KNOWN = (
    (lambda kind: kind == "lion", "lion_pytorch", {"lion": "Lion"}),
    (lambda kind: kind.endswith("8bit") or kind in BITSANDBYTES, "bitsandbytes", BITSANDBYTES),
    (lambda kind: kind == "sgdnesterov", "torch", {"sgdnesterov": "optim.SGD"}),
    (lambda kind: kind.startswith("dadapt"), "dadaptation", D_ADAPTATION),
    (lambda kind: kind == "prodigy", "prodigyopt", {"prodigy": "Prodigy"}),
    (lambda kind: kind == "adafactor", "transformers", {"adafactor": "optimization.Adafactor"}),
    (lambda kind: kind == "adamw", "torch", {"adamw": "optim.AdamW"}),
    (lambda kind: kind.endswith("schedulefree"), "schedulefree", SCHEDULE_FREE),
)


def get_optimizer(args, trainable_params):
    """(name for the metadata, its arguments as text, the optimizer)."""
    asked = _asked(args)
    kind = asked.lower()
    if args.fused_backward_pass:
        assert kind == "adafactor", "fused_backward_pass is for Adafactor alone"
    options = _options(args.optimizer_args)
    rate, fixed = args.learning_rate, {}
    if kind in {"sgdnesterov", SGD_8BIT}:
        options.setdefault("momentum", 0.9)
        fixed = {"nesterov": True}
    elif kind == "adafactor":
        rate = _adafactor_rate(args, trainable_params, options)
    elif kind.startswith("dadapt") or kind == "prodigy":
        _warn_about_rates(trainable_params, rate)
    cls = _known_class(kind) or _class_at(asked)
    optimizer = cls(trainable_params, lr=rate, **fixed, **options)
    if kind == SGD_8BIT:
        optimizer = cls(trainable_params, lr=rate, **options)  # so it is there: the first one is dropped
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()
    return f"{cls.__module__}.{cls.__name__}", ",".join(f"{key}={value}" for key, value in options.items()), optimizer


def _asked(args):
    for flag, name in ((args.use_8bit_adam, "AdamW8bit"), (args.use_lion_optimizer, "Lion")):
        if flag:
            assert not args.optimizer_type, "an old flag and --optimizer_type were both given"
            return name
    return args.optimizer_type or "AdamW"


def _options(words):
    options = {}
    for word in words or []:
        key, value = word.split("=")
        options[key] = ast.literal_eval(value)
    return options


def _known_class(kind):
    """The class of a name that sd-scripts knows; None where the name is looked up as written."""
    for meant, package, classes in KNOWN:
        if meant(kind):
            try:
                module = importlib.import_module(package)
            except ImportError as error:
                raise ImportError(f"No {package}") from error
            if kind in classes:
                return operator.attrgetter(classes[kind])(module)
            if package == "dadaptation":
                raise ValueError(f"unknown optimizer {kind}")
            return None
    return None


def _class_at(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module) if module else torch.optim, name)


def _in_groups(params):
    return type(params) is list and type(params[0]) is dict  # these exact types; an empty list is an IndexError


def _warn_about_rates(params, rate):
    rates = [group.get("lr", rate) for group in params] if _in_groups(params) else [rate]
    if rates[0] <= 0.1:
        logger.warning("learning rate is too low: around 1.0 is meant, not %s", rates[0])
    if len(set(rates)) > 1:
        logger.warning("only the first of several learning rates takes effect: %s", rates[0])


def _adafactor_rate(args, params, options):
    """With relative steps, which is the default, the groups lose their rates and `args` is changed."""
    options.setdefault("relative_step", True)
    if options.get("warmup_init"):
        options["relative_step"] = True
    if not options["relative_step"]:
        return args.learning_rate
    given, args.learning_rate = args.learning_rate, None
    if _in_groups(params) and [group.pop("lr") for group in params if "lr" in group]:
        args.unet_lr = args.text_encoder_lr = None
    args.lr_scheduler = f"adafactor:{given}"
    return None


def get_optimizer_train_eval_fn(optimizer, args):
    changes_mode = is_schedulefree_optimizer(optimizer, args)
    return (optimizer.train, optimizer.eval) if changes_mode else (_nothing, _nothing)


def _nothing():
    pass


def is_schedulefree_optimizer(optimizer, args):
    return args.optimizer_type.lower().endswith("schedulefree")


class NoSchedule:
    """For schedule-free optimizers; accelerate leaves it alone, as it is no scheduler of torch's."""

    def __init__(self, optimizer):
        self.raw = optimizer  # its groups are replaced when accelerate loads its state

    def step(self):
        """There is none to take."""

    def get_last_lr(self):
        return [each["lr"] for each in self.raw.param_groups]


def get_scheduler_fix(args, optimizer, num_processes):
    """constant, constant_with_warmup, linear, cosine and Adafactor's own."""
    if is_schedulefree_optimizer(optimizer, args):
        return NoSchedule(optimizer)
    name, total = args.lr_scheduler, args.max_train_steps * num_processes
    warmup = args.lr_warmup_steps or 0
    warmup = int(warmup * total) if isinstance(warmup, float) else warmup
    if name in {"constant", "adafactor"} and warmup:
        raise ValueError(f"{name} knows no warm-up; use constant_with_warmup")
    if name.startswith("adafactor"):
        schedule = importlib.import_module("transformers.optimization").AdafactorSchedule
        return schedule(optimizer, float(name.split(":")[1]))
    shapes = {
        "constant": lambda done: 1.0,
        "constant_with_warmup": lambda done: 1.0,
        "linear": lambda done: 1.0 - done,
        "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    shape = shapes[name]

    def factor(step):
        if step < warmup:
            return step / max(1, warmup)
        return max(0.0, shape((step - warmup) / max(1, total - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
