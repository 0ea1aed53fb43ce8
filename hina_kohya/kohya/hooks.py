"""Where the lines of the patches look for the hooks."""

from hina_kohya.trainers.hooks import active, install, uninstall

__all__ = ["active", "install", "uninstall"]
