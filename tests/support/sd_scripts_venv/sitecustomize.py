"""On PYTHONPATH: no peft, as in sd-scripts' own venv. LyCORIS imports it where it can, which takes two seconds."""

import sys

sys.modules["peft"] = None  # type: ignore[assignment]
