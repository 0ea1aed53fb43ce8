"""`--network_module hina_kohya.lycoris`: LyCORIS, with names, roles and the options of `kohya.options` in network_args.

Importing this module installs the hooks, so short optimizer names work, too.
"""

from hina_kohya.trainers import hooks

_module = hooks.network_module("lycoris.kohya")

create_network = _module.create_network
create_network_from_weights = _module.create_network_from_weights
