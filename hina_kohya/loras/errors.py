"""What is wrong with a file or a request, for the person who asked."""


class AdapterError(ValueError):
    """One line: the value, the bound, what to do."""
