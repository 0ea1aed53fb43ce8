"""A small transformer with PEFT's adapters, and HF's Trainer around it."""

import warnings

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
LAYERS = 2
TARGETS = ["q_proj", "v_proj", "down_proj"]


def llama(**options):
    """A transformer of two layers with adapters on three matrices of each."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=2
    )
    options = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **options}
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), peft.LoraConfig(**options))


def texts(count=24, length=8):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 64, (count, length), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def trainer(model, folder, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pinned memory without a GPU
        arguments = transformers.TrainingArguments(
            str(folder), per_device_train_batch_size=2, max_steps=6, save_steps=3, logging_steps=1, report_to=[],
            use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, seed=0,
        )  # fmt: skip
        return transformers.Trainer(model, arguments, train_dataset=texts(), **more)
