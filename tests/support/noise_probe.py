"""`--network_module tests.support.noise_probe`: ADLRNS that notes how noisy each sample is, measured and as read.

Measured: off the noisy latents, the latents and the noise of the trainer itself; with SD and SDXL, whose noise is not
mixed in by shares, its timesteps. noise.jsonl in PROBE_FOLDER has a line for every call of either kind.
"""

import functools
import inspect
import json
import os
import sys
from pathlib import Path

from hina_kohya.adlrns import create_network as create

OUTER = []
FLOW, DIFFUSION = "get_noisy_model_input_and_timesteps", "get_noise_noisy_latents_and_timesteps"


def create_network(*args, **kwargs):
    for holder in list(holders()):
        for name in (FLOW, DIFFUSION):
            if name in vars(holder):
                setattr(holder, name, measured(vars(holder)[name]))
    network = create(*args, **kwargs)
    states = network.adlrns_states
    states._bins = reading(states._bins)
    return network


def holders():
    """Modules and trainers' classes that define how noise is mixed in."""
    for name, module in list(sys.modules.items()):
        if name == "__main__" or name.startswith(("library.", "musubi_tuner.")):
            yield module
            yield from (thing for thing in vars(module).values() if isinstance(thing, type) and FLOW in vars(thing))


def note(**line):
    with Path(os.environ["PROBE_FOLDER"], "noise.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def measured(function):
    if hasattr(function, "__wrapped__"):
        return function
    signature = inspect.signature(function)

    @functools.wraps(function)
    def noted(*args, **kwargs):
        if OUTER:  # an heir's method calls its parent's
            return function(*args, **kwargs)
        OUTER.append(function)
        try:
            result = function(*args, **kwargs)
        finally:
            OUTER.clear()
        given = signature.bind(*args, **kwargs).arguments
        if function.__name__ == FLOW:
            noisy, latents, noise = (each.double() for each in (result[0], given["latents"], given["noise"]))
            mixed = noise - latents
            shares = ((noisy - latents) * mixed).flatten(1).sum(1) / mixed.square().flatten(1).sum(1)
        else:
            shares = result[2] / 1000
        note(measured=shares.tolist())
        return result

    return noted


def reading(bins):
    def noted(noise):
        states = bins(noise)
        note(read=noise.tolist(), bins=states)
        return states

    return noted
