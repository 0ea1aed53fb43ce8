"""Two texts that come with Python, in tokens. No module and no page is both trained on and held out."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.convergence.language import help_pages, source_text

from . import model


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


TEXTS: dict[str, Callable[[], tuple[str, str]]] = {"python": source_text, "english": english}


@cache
def tokens(folder: Path, text: str) -> tuple[Tensor, Tensor]:
    """(train, held out) [N]"""
    encode = model.tokenizer(folder).encode
    train, held_out = (torch.tensor(encode(part, add_special_tokens=False)) for part in TEXTS[text]())
    return train, held_out
