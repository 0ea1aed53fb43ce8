"""What an optimizer says of itself: plain, JSON-serialisable dictionaries with stable keys, at any time.

Nothing here runs during a step, so it may synchronise.
"""

import logging
import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hina_kohya
from hina_kohya.core import registry
from hina_kohya.core.bucket import Bucket, matrix_shape, to_device
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.schedules import base_rate
from hina_kohya.core.state.codec import EightBit
from hina_kohya.core.stepping import effective_rates
from hina_kohya.core.technique import Stage
from hina_kohya.optim import rank_and_alpha
from hina_kohya.parameters import roles
from hina_kohya.parameters.lookup import is_looked_up
from hina_kohya.parameters.members import splits_lr

logger = logging.getLogger("hina_kohya")

SMALL_FACTOR = 0.1  # a rate of Adam's; a factor of what is found it cannot be meant as
LARGE_RATE = 0.3  # no workload of benchmarks/ trains with it


def trained(optimizer: HinaOptimizer) -> list[roles.Member]:
    """The members less those that are frozen."""
    frozen = {index for bucket in optimizer.plan().frozen for index in bucket.indices}
    return [member for index, member in enumerate(optimizer.members) if index not in frozen]


def summary(optimizer: HinaOptimizer, state: str) -> str:
    """What was recognised, how it is stepped, and in how many bytes."""
    used = f"{memory(optimizer)['bytes_per_parameter']:.2f} bytes of state per parameter"
    parts = [f"{roles.summary_line(trained(optimizer))}; {type(optimizer).__name__}", state, used]
    found = found_rate(optimizer)
    finds = [] if found is None else [f"finds the learning rate, from {found:g}"]
    return ", ".join(parts + finds + rank_and_alpha.words(optimizer))


def information(optimizer: HinaOptimizer) -> dict[str, Any]:
    members = trained(optimizer)
    counts = roles.summary(members)
    return {
        "optimizer_type": type(optimizer).__name__,
        "version": hina_kohya.__version__,
        "total_params": sum(math.prod(member.shape) for member in members),
        "features": features(optimizer),
        "conflicts_resolved": list(getattr(optimizer, "conflicts", [])),
        "lora_stats": counts["lora_stats"],
        "lokr_stats": counts["lokr_stats"],
        "roles": counts["by_role"],
        "training_stats": {
            "global_step": global_step(optimizer),
            "effective_lr": effective_lr(optimizer),
            "gradient_spikes": gradient_spikes(optimizer),
            "non_finite_steps": {
                optimizer.member_name(index): steps for index, steps in sorted(optimizer.skipped_steps().items())
            },
        },
        "memory": memory(optimizer),
    }


def features(optimizer: HinaOptimizer) -> dict[str, dict[str, Any]]:
    """Techniques in effect: their options, and how many parameters (tensors) each acts on."""
    acting: dict[str, int] = defaultdict(int)
    for each in optimizer.parameters():
        for technique in each.chain:
            acting[technique.name] += 1
    options = {name: values for group in optimizer.param_groups for name, values in group["techniques"].items()}
    return {name: {"parameters": acting[name], **options[name]} for name in sorted(options) if acting[name]}


def global_step(optimizer: HinaOptimizer) -> int:
    return max((int(bucket.steps.max()) for bucket in optimizer.plan().buckets), default=0)


def gradient_spikes(optimizer: HinaOptimizer) -> int:
    """Spikes that `edge_suppression` damped so far, over all matrices."""
    return round(sum(count.item() for count in spike_counts(optimizer)))


def skipped_counts(optimizer: HinaOptimizer) -> tuple[list[Tensor], int]:
    """Steps that non-finite gradients cost each parameter since the plan was made, int32 [N] on each device, and the
    sum of those before it; does not synchronise."""
    return [table.skipped() for table in optimizer.plan().counters.tables], optimizer.skipped.earlier.total()


def spike_counts(optimizer: HinaOptimizer) -> list[Tensor]:
    """float64 scalars on their devices, one per bucket that `edge_suppression` acts on; does not synchronise."""
    slabs = (bucket.slabs.get(("edge_suppression", "spikes")) for bucket in optimizer.plan().buckets)
    return [slab.read(slice(None), torch.float64).sum() for slab in slabs if slab is not None]


def importance(optimizer: HinaOptimizer) -> list[tuple[np.ndarray, np.ndarray, Tensor]]:
    """(indices of parameters, their numbers of entries, means over these of the running average of |p g|), each [N].

    One a bucket that `importance` acts on, the means on its device; does not synchronise.
    """
    return [
        (np.array(bucket.indices), _sizes(bucket), slab.read(slice(None), torch.float64).flatten())
        for bucket in optimizer.plan().buckets
        if (slab := bucket.slabs.get(("importance", "average"))) is not None
    ]


def say_odd_rates(optimizer: HinaOptimizer) -> None:
    """Logs a learning rate that is meant for an optimizer which finds its own, or is not and was given to one."""
    found = found_rate(optimizer)
    rate = max((base_rate(group) for group in optimizer.param_groups), default=0.0)
    if found is not None and 0 < rate <= SMALL_FACTOR:
        logger.warning("use_auto_lr finds the learning rate and multiplies it by the %g that was given; give 1", rate)
    elif found is None and rate >= LARGE_RATE:
        logger.warning(
            "learning rate %g: steps far larger than those that train a LoRA; "
            "HinaAuto (or use_auto_lr=True) finds the rate and wants 1",
            rate,
        )


def say_idle(optimizer: HinaOptimizer) -> None:
    """Logs techniques that were asked for and act on no parameter, and what Muon leaves to the other moment."""
    acting = {technique.name for each in optimizer.parameters() for technique in each.chain}
    available = registry.techniques()
    names = [member.name for member in optimizer.members]
    for argument, (name, *others) in optimizer.asked.items():
        if not acting.isdisjoint((name, *others)) or not names:
            continue
        if any(splits_lr(optimizer.param_groups, optimizer.members)) and available[name].splits_lr:
            why = "the param groups give partners different learning rates already"
        elif None in names:
            unnamed = names.count(None)
            why = (
                f"it needs {available[name].needs}, and {unnamed} of {len(names)} parameters have no name: pass names "
                "(network.named_parameters(), or any way into the trainer but the dotted path)"
            )
        else:
            why = f"it needs {available[name].needs}; the first parameter here is {names[0]}"
        logger.warning("%s=True acts on no parameter: %s", argument, why)
    if left := _left_by_muon(optimizer):
        logger.info("Muon leaves to the other moment: %s", "; ".join(left))


def _left_by_muon(optimizer: HinaOptimizer) -> list[str]:
    looked_up, large = [], []
    for each in optimizer.parameters():
        member, muon = each.member, optimizer.param_groups[each.group]["techniques"].get("muon")
        if muon is None or len(member.shape) < 2 or any(technique.name == "muon" for technique in each.chain):
            continue
        if is_looked_up(member):
            looked_up.append(str(member.name))
        elif min(matrix_shape(member.shape)) > muon["largest"]:
            large.append(member.name or f"of shape {member.shape}")
    left = [f"{len(looked_up)} embeddings and heads ({looked_up[0]}, ...)"] if looked_up else []
    if large:
        left.append(f"{len(large)} matrices of many rows and columns ({large[0]}, ...), by muon.largest")
    return left


def memory(optimizer: HinaOptimizer) -> dict[str, Any]:
    """Exact bytes of everything kept between steps, beside AdamW's 8 bytes a parameter."""
    plan = optimizer.plan()
    total = sum(math.prod(member.shape) for member in trained(optimizer))
    packed = sum(
        len(bucket) * bucket.key.shape.numel()
        for bucket in plan.buckets
        if any(isinstance(slab.codec, EightBit) for slab in bucket.slabs.values())
    )
    state_bytes = plan.nbytes()
    return {
        "total_parameters": total,
        "8bit_parameters": packed,
        "32bit_parameters": total - packed,
        "state_bytes": state_bytes,
        "bytes_per_parameter": state_bytes / max(total, 1),
        "memory_saved_mb": (8 * total - state_bytes) / 2**20,
        "compression_ratio": 8 * total / max(state_bytes, 1),
    }


def effective_lr(optimizer: HinaOptimizer) -> list[float]:
    """For each param group, the mean over its elements of learning rate times what STEP_SIZE techniques make of it."""
    totals = [total.cpu() for total in effective_totals(optimizer)]
    counts = elements(optimizer)
    return (sum((total.numpy() for total in totals), np.zeros(len(counts))) / counts.clip(min=1)).tolist()


def elements(optimizer: HinaOptimizer) -> np.ndarray:
    """float64 [G], those of each group's parameters that are stepped."""
    counts = np.zeros(len(optimizer.param_groups))
    for bucket in optimizer.plan().buckets:
        np.add.at(counts, bucket.groups, _sizes(bucket))
    return counts


def effective_totals(optimizer: HinaOptimizer) -> list[Tensor]:
    """By device, what `effective_lr` is the mean of, summed over the elements of each group: float64 [G].

    Does not synchronise.
    """
    plan = optimizer.plan()
    totals: dict[torch.device, Tensor] = {}
    with torch.no_grad():
        plan.publish()
        for bucket, rates in zip(plan.buckets, plan.rates.of(optimizer.param_groups), strict=True):
            device = bucket.key.device
            empty = torch.zeros(len(optimizer.param_groups), dtype=torch.float64, device=device)
            sums = effective_rates(plan, bucket, rates).flatten() * to_device(_sizes(bucket), device)
            totals.setdefault(device, empty).index_add_(0, to_device(bucket.groups, device), sums)
        plan.forget()
    return list(totals.values())


def _sizes(bucket: Bucket) -> np.ndarray:
    """float64 [N]"""
    return np.array([param.numel() for param in bucket.params], dtype=np.float64)


def found_rate(optimizer: HinaOptimizer) -> float | None:
    """What a technique of stage RATE multiplies every learning rate by at the next step; None where there is none."""
    for pooling in optimizer.plan().poolings():
        if pooling.technique.stage is Stage.RATE:
            return float(pooling.technique.pool(pooling.table()).flatten()[0])
    return None


def pairing(optimizer: HinaOptimizer) -> dict[str, Any]:
    """Group by group, what was taken for A, for B, and who is whose partner."""
    members = optimizer.members
    groups, start = {}, 0
    for number, group in enumerate(optimizer.param_groups):
        own = members[start : start + len(group["params"])]
        start += len(own)
        side = {"A": [m for m in own if m.role.side == "A"], "B": [m for m in own if m.role.side == "B"]}
        groups[f"group_{number}"] = {
            "lora_a_count": len(side["A"]),
            "lora_b_count": len(side["B"]),
            "pairs_count": sum(m.partner is not None for m in side["B"]),
            "unpaired_a": [m.name for m in side["A"] if m.partner is None],
            "unpaired_b": [m.name for m in side["B"] if m.partner is None],
            "parameter_details": [
                {
                    "name": m.name,
                    "type": m.role.name,
                    "shape": list(m.shape),
                    "is_paired": m.partner is not None or bool(m.cofactors),
                    "paired_with": [members[p].name for p in (m.cofactors or (m.partner,)) if p is not None],
                }
                for m in own
            ],
        }
    return {"total_groups": len(groups), "groups": groups}
