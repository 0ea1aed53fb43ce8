"""Names from every source sd-scripts and torch offer, without more or fewer groups than were given."""

import pytest
import torch

from hina_kohya import HinaAdamW
from tests.support.stepping import make_params

NAMES = list(make_params())


def names_of(optimizer):
    return [member.name for member in optimizer.members]


@pytest.mark.parametrize(
    "groups",
    [
        lambda p: p.items(),
        lambda p: p.values(),
        lambda p: [{"params": p.values()}],
        lambda p: [{"params": list(p.items())}],
        lambda p: [{"params": list(p.values()), "named": list(p)}],
        lambda p: [{"params": list(p.values()), "param_names": list(p)}],
        lambda p: [{"params": iter(p.items())}],
    ],
    ids=["items", "values", "group values", "tuples", "named", "param_names", "iterator"],
)
def test_every_source(groups):
    params = make_params()
    optimizer = HinaAdamW(groups(params))
    assert names_of(optimizer) == NAMES
    assert len(optimizer.param_groups) == 1
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], params.values(), strict=True))


def test_lists_have_no_names():
    assert names_of(HinaAdamW(list(make_params().values()))) == [None] * len(NAMES)


def test_groups_with_and_without_names_can_be_mixed():
    """networks.lora_fa passes lists for one part and the text encoder may pass dict values."""
    first, second = make_params(), make_params(shapes={"lora_te_x.lora_up.weight": (3, 2)})
    optimizer = HinaAdamW([{"params": list(first.values())}, {"params": second.values()}])
    assert names_of(optimizer) == [None] * len(NAMES) + list(second)
    assert len(optimizer.param_groups) == 2
    later = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer.add_param_group({"params": [later]})
    assert names_of(optimizer)[-2:] == [*second, None]


def test_pairs_across_groups():
    params = make_params(shapes={"lora_unet_a.lora_down.weight": (4, 12), "lora_unet_a.lora_up.weight": (10, 4)})
    down, up = params.items()
    optimizer = HinaAdamW([{"params": [down]}, {"params": [up]}])
    assert [member.partner for member in optimizer.members] == [1, 0]


def test_names_that_do_not_fit_are_an_error():
    params = list(make_params().values())
    with pytest.raises(ValueError, match="3 names were given for 14 parameters"):
        HinaAdamW([{"params": params, "named": ["a", "b", "c"]}])
    with pytest.raises(ValueError, match="13 of 14 parameters have no name"):
        HinaAdamW([("x", params[0]), *params[1:]])
    with pytest.raises(TypeError, match="use a list, not a set"):
        HinaAdamW([{"params": set(params)}])


def test_a_failed_add_param_group_keeps_the_names():
    params = make_params()
    optimizer = HinaAdamW(params.items())
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [next(iter(params.values()))]})
    assert names_of(optimizer) == NAMES
