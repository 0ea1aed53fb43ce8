"""`--network_module tests.support.adlrns_probe`: ADLRNS that writes a hash of its tables at each choice, by rank."""

import hashlib
import os
from pathlib import Path

import hina_kohya.adlrns


def create_network(*args, **kwargs):
    network = hina_kohya.adlrns.create_network(*args, **kwargs)
    choose = network.choose

    def noted(apply):
        choose(apply)
        tables = [tensor for lora in network.adlrns_modules() for tensor in (lora.adlrns_kept, lora.adlrns_stats)]
        digest = hashlib.sha256(b"".join(tensor.float().numpy().tobytes() for tensor in tables)).hexdigest()
        counts = [int(lora.adlrns_kept.sum()) for lora in network.adlrns_modules()]
        path = Path(os.environ["PROBE_FOLDER"]) / f"tables{os.environ.get('RANK', '0')}.txt"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{digest} {sum(counts)}\n")

    network.choose = noted
    return network
