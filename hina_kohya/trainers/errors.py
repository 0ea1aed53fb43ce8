"""Errors that are the user's to fix: one clear message, never a traceback where we own the process."""


class UserError(Exception):
    """Something asked for cannot be done. The message names the value, the bound and the fix."""

    exit_code = 2


class PluginError(RuntimeError):
    """A bug of this package. Never a TypeError: sd-scripts swallows one and goes on without groups or descriptions."""
