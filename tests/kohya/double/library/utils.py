"""Double of sd-scripts' library/utils.py."""

import logging


def setup_logging(reset=False):
    """At import only where nobody did it before; with `reset` in place of what is there."""
    if logging.root.handlers and not reset:
        return
    logging.root.handlers[:] = [logging.StreamHandler()]
    logging.root.setLevel(logging.INFO)


setup_logging()
