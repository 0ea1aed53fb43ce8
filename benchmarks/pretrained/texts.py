"""Two texts that come with Python, in tokens. What is held out is of the same kind, but nothing that is trained on."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.convergence.language import MODULES, help_pages, source_of

from . import model


def python() -> tuple[str, str]:
    """(train, held out): of every module the last fifth is held out, as of one subject's pictures some would be."""
    parts: tuple[list[str], list[str]] = ([], [])
    for name in " ".join(MODULES).split():
        lines = source_of(name).splitlines(keepends=True)
        cut = len(lines) * 4 // 5
        parts[0].append("".join(lines[:cut]))
        parts[1].append("".join(lines[cut:]))
    train, held_out = ("\n".join(texts) for texts in parts)
    return train, held_out


def english() -> tuple[str, str]:
    """(train, held out): every fifth page of Python's help is held out. Paragraphs that pages share count once."""
    parts: tuple[list[str], list[str]] = ([], [])
    known: set[str] = set()
    for i, page in enumerate(help_pages()):
        paragraphs = [paragraph for paragraph in page.split("\n\n") if paragraph not in known]
        known.update(paragraphs)
        parts[i % 5 == 0].append("\n\n".join(paragraphs))
    train, held_out = ("\n\n".join(pages) for pages in parts)
    return train, held_out


TEXTS: dict[str, Callable[[], tuple[str, str]]] = {"python": python, "english": english}


@cache
def tokens(folder: Path, text: str) -> tuple[Tensor, Tensor]:
    """(train, held out) [N]"""
    encode = model.tokenizer(folder).encode
    train, held_out = (torch.tensor(encode(part, add_special_tokens=False)) for part in TEXTS[text]())
    return train, held_out
