"""A network module and an optimizer that write down when they are called: events.txt in PROBE_FOLDER."""

import os
from pathlib import Path

import lycoris.kohya
import torch


def note(*words):
    with Path(os.environ["PROBE_FOLDER"], "events.txt").open("a", encoding="utf-8") as file:
        file.write(" ".join(map(str, words)) + "\n")


note("import")


def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None, **kwargs):
    note("create_network", *(f"{key}={value}" for key, value in sorted(kwargs.items())))
    fails = kwargs.pop("fails", None)
    network = lycoris.kohya.create_network(
        multiplier, network_dim, network_alpha, vae, text_encoder, unet, preset="attn-mlp", algo="lora"
    )
    return noting(network, fails)


def noting(network, fails):
    apply_to, prepare = network.apply_to, network.prepare_optimizer_params

    def noted_apply_to(*args):
        note("apply_to", *args[2:])
        apply_to(*args)

    def noted_prepare(*rates):
        note("prepare_optimizer_params", *rates)
        if fails and len(rates) == 3:
            raise TypeError("a bug within")
        return prepare(*rates) if len(rates) == 3 else prepare(*rates, 1e-3)[0]

    network.apply_to, network.prepare_optimizer_params = noted_apply_to, noted_prepare
    network.prepare_network = lambda args: note("prepare_network", args.max_train_steps)
    network.register_load_state_dict_post_hook(lambda *_: note("network.load_state_dict"))
    return network


class AdamW(torch.optim.AdamW):
    def __init__(self, params, **options):
        super().__init__(params, **options)
        note("optimizer", *self._dtypes())

    def _dtypes(self):
        params = [param for group in self.param_groups for param in group["params"]]
        return sorted({str(param.dtype) for param in params})

    def load_state_dict(self, state_dict):
        note("optimizer.load_state_dict", len(state_dict["state"]))
        super().load_state_dict(state_dict)

    def step(self, closure=None):
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params if param.grad is not None]
        norm = torch.stack([grad.float().norm() for grad in grads]).norm().item()
        note("norm", f"{norm:.4f}")
        note("step", closure, *self._dtypes())
        return super().step(closure)

    def zero_grad(self, set_to_none=True):
        note("zero_grad", set_to_none)
        super().zero_grad(set_to_none)
