"""What is wrong with a folder or a request, for the person who asked."""


class ReportError(ValueError):
    """One line: the value, the bound, what to do."""
