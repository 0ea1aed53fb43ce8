"""What a plugin must know of a family of trainers, as data; one file a family."""

import dataclasses as dc
from collections.abc import Mapping

from hina_kohya.trainers.facts.optimizers import Optimizers
from hina_kohya.trainers.facts.timesteps import Timestep


@dc.dataclass(frozen=True)
class GroupsCall:
    """One way in which a trainer asks its network for param groups.

    positional, keywords: the arguments of the call
    default_lr          : which of them, by place or name, is the rate of groups that have none; None: there is none
    pair                : True: it unpacks (groups, descriptions). None: it takes those, or the groups alone. False: the
                          groups alone
    """

    positional: int = 0
    keywords: frozenset[str] = frozenset()
    default_lr: int | str | None = None
    pair: bool | None = None


@dc.dataclass(frozen=True, eq=False)
class Trainer:
    """One family of trainers; there is one object a family.

    home           : the environment variable that names a checkout
    marks          : files by which a checkout is known
    scripts        : glob of the scripts that train adapters
    script_folders : where they are in a checkout
    import_folders : what their imports are looked up in
    get_optimizer  : where the function is that makes optimizers, as `module:function` or `module:Class.method`, the
                     newest release first
    get_scheduler  : the same for its learning rates
    returns_modes  : get_optimizer also returns what sets training and evaluation mode
    step_logs      : the same for the scalars that it logs at each step
    batch_loss     : the same for the loss of a batch, `is_train=False` in its validation; none: it has no validation
    after_step     : the same for what it calls after each step, where it has no validation
    get_modes      : the same for what switches an optimizer to training and to evaluation
    network_package: the package whose modules make networks, as `--network_module` names it
    network_scripts: ends of network modules' names -> the script that trains with them
    dataset_module : the module that checks the file of --dataset_config
    groups_calls   : how it asks a network for param groups
    optimizers     : what it does with `--optimizer_type`
    timesteps      : classes of the models it trains, or of their bases -> how it gives them the timestep
    """

    name: str
    home: str
    marks: tuple[str, ...]
    scripts: str
    script_folders: tuple[str, ...]
    import_folders: tuple[str, ...]
    get_optimizer: tuple[str, ...]
    get_scheduler: tuple[str, ...]
    step_logs: tuple[str, ...]
    network_package: str
    network_scripts: Mapping[str, str]
    dataset_module: str
    groups_calls: tuple[GroupsCall, ...]
    optimizers: Optimizers
    timesteps: Mapping[str, Timestep]
    returns_modes: bool = False
    batch_loss: tuple[str, ...] = ()
    after_step: tuple[str, ...] = ()
    get_modes: tuple[str, ...] = ()

    @property
    def modules(self) -> set[str]:
        """The modules by which a running trainer of this family is known."""
        return {path.partition(":")[0] for path in (*self.get_optimizer, *self.get_scheduler)}
