"""`--optimizer_type tests.support.resume_probe.HinaAdamW`: what it resumes from, in loaded.pt of PROBE_FOLDER."""

import os
from pathlib import Path

import torch

import hina_kohya


class HinaAdamW(hina_kohya.HinaAdamW):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if state_dict["state"]:  # accelerate loads an empty one first
            torch.save(self.state_dict(), Path(os.environ["PROBE_FOLDER"]) / "loaded.pt")
