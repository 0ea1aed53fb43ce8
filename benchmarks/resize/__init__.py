"""Smaller files of a finished LoRA, by every resizer there is, and LoRAs trained at those sizes: loss over bytes."""
