"""`--optimizer_type tests.support.group_probe.AdamW`: writes down what it was given, groups.json in PROBE_FOLDER."""

import json
import os
from pathlib import Path

import torch

TAGS = ("_is_lora_A", "_is_lora_B", "_is_dora_scale", "_is_oft", "is_vector", "is_hidden")


class AdamW(torch.optim.AdamW):
    def __init__(self, params, **options):
        params = list(params)
        forms = [form(group["params"]) for group in params]
        keys = [sorted(group) for group in params]
        super().__init__(params, **options)
        groups = [describe(*each) for each in zip(self.param_groups, forms, keys, strict=True)]
        Path(os.environ["PROBE_FOLDER"], "groups.json").write_text(json.dumps(groups))


def form(params):
    """How a group's parameters were given: "named" (torch's tuples), "values" (of a dict) or "list"."""
    if hasattr(params, "mapping"):
        return "values"
    return "named" if isinstance(params[0], tuple) else "list"


def describe(group, how, keys):
    params = group["params"]
    return {
        "form": how,
        "keys": keys,
        "count": len(params),
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "param_names": group.get("param_names"),
        "shapes": [list(param.shape) for param in params],
        "tags": [[tag for tag in TAGS if getattr(param, tag, False)] for param in params],
    }
