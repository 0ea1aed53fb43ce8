"""HinaAdamW that writes down a hash of all parameters after every step, one file a rank."""

import hashlib
import os
from pathlib import Path

import hina_kohya


class Probe(hina_kohya.HinaAdamW):
    def step(self, closure=None):
        loss = super().step(closure)
        digest = hashlib.sha256()
        for param in self.params():
            digest.update(param.detach().float().cpu().numpy().tobytes())
        path = Path(os.environ["PROBE_FOLDER"]) / f"rank{os.environ.get('RANK', '0')}.txt"
        with path.open("a") as file:
            file.write(digest.hexdigest() + "\n")
        return loss
