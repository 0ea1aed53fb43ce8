"""Line endings: files are compared and patched with LF, and written back as the user had them."""

LF, CRLF, MIXED = "lf", "crlf", "mixed"


def style(data: bytes) -> str:
    """LF, CRLF, or MIXED. A file without a line ending counts as LF."""
    windows = data.count(b"\r\n")
    if not windows:
        return LF
    return CRLF if windows == data.count(b"\n") else MIXED


def to_lf(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n")


def from_lf(data: bytes, wanted: str) -> bytes:
    return data.replace(b"\n", b"\r\n") if wanted == CRLF else data


def odd_lines(data: bytes) -> list[int]:
    """Numbers of the lines whose ending is not that of most lines."""
    windows = [line.endswith(b"\r") for line in data.split(b"\n")[:-1]]
    usual = sum(windows) * 2 > len(windows)
    return [number for number, ending in enumerate(windows, 1) if ending != usual]
