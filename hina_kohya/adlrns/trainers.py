"""`from hina_kohya.adlrns.trainers import ADLRNSTrainer`: where the original document has its trainer."""

from hina_kohya.adlrns.layer.trainer import ADLRNSTrainer

__all__ = ["ADLRNSTrainer"]
