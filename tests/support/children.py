"""Processes that a test starts, as sd-scripts' venv would start them: a conftest imports the fixture."""

import os
from pathlib import Path

import pytest

VENV = Path(__file__).parent / "sd_scripts_venv"


@pytest.fixture(autouse=True)
def without_peft(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(VENV), prepend=os.pathsep)
