"""Train the base model of `hina-kohya train`: digits 0-7 only, so that an adapter has something left to learn.

    python scripts/make_base_model.py            # 5 to 10 minutes on one core; writes hina_kohya/demo/base_model

The same seed, thread count and library versions give the same weights. The words "eight" and "nine" are in the
vocabulary but in no caption. Weights are the exponential moving average of training, stored as fp16.
"""

import argparse
import copy
import dataclasses as dc
import json
import time
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from hina_kohya.demo.data import TEMPLATES, WORDS, DigitImages
from hina_kohya.demo.judge import Judge
from hina_kohya.demo.model import MAX_TOKENS, DigitModel
from hina_kohya.demo.report import draw, versions
from hina_kohya.demo.sample import GUIDANCE, STEPS
from hina_kohya.demo.settings import BASE_MODEL

KNOWN = list(range(8))
JUDGED = 200
CAPTION_DROPOUT = 0.1  # classifier-free guidance needs a model that knows the empty caption


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair vocabulary: the words of the captions are one token each, other text falls back to bytes."""
    words = sorted({w for t in TEMPLATES for w in t.replace("{}", "").split()} | set(WORDS))
    alphabet = list(bytes_to_unicode().values())
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(c + "</w>" for c in alphabet)]
    merges: list[str] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(pieces[0] + pieces[1])
            pieces[:2] = [pieces[0] + pieces[1]]
    folder.mkdir(parents=True, exist_ok=True)
    # The special tokens come last, as in CLIP: its text model looks for the largest id when it pools.
    vocabulary = vocabulary[2:] + vocabulary[:2]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=MAX_TOKENS,
    )
    split = [w for w in words if len(tokenizer.tokenize(w)) != 1]
    if split:
        raise SystemExit(f"the merges of other words break up {', '.join(split)}: choose other captions")
    return tokenizer


def make_model(tokenizer: CLIPTokenizer) -> DigitModel:
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    return DigitModel(tokenizer, CLIPTextModel(text), unet, scheduler)


def train(model: DigitModel, args: argparse.Namespace) -> DigitModel:
    """Returns the moving average of the weights."""
    data = DigitImages(KNOWN, args.seed)
    modules = (model.text_encoder, model.unet)
    average = copy.deepcopy(model)
    parameters = [p for m in modules for p in m.parameters()]
    averaged = [p for m in (average.text_encoder, average.unet) for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=100, num_training_steps=args.steps)
    start = time.perf_counter()
    for step in range(args.steps):
        loss = model.loss(data.batch(step, args.batch_size, CAPTION_DROPOUT))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        decay = min(0.995, (1 + step) / (10 + step))
        torch._foreach_lerp_([p.data for p in averaged], [p.data for p in parameters], 1 - decay)
        if (step + 1) % 100 == 0:
            rate = (time.perf_counter() - start) / (step + 1)
            print(f"step {step + 1}/{args.steps}  loss {loss.item():.4f}  {rate * 1e3:.0f} ms/step", flush=True)
        if args.look_every and (step + 1) % args.look_every == 0:
            print(json.dumps(measure(average)), flush=True)
            copy.deepcopy(average).save(args.output)
    return average


def measure(model: DigitModel) -> dict:
    """Accuracies as the demo reports them: 200 images of the known digits, 200 of the unknown."""
    judge, result = Judge(), {}
    for name, digits in {"digits_0_to_7": KNOWN, "digits_8_and_9": [8, 9]}.items():
        result[name] = dc.asdict(draw(model.freeze(), judge, digits, JUDGED, seed=0).verdict())
    return {"judge_held_out_accuracy": judge.held_out_accuracy, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=BASE_MODEL)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="part of what makes the run reproducible")
    parser.add_argument("--look_every", type=int, default=0, help="judge and keep the model every so many steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)

    start = time.perf_counter()
    model = train(make_model(make_tokenizer(args.output / "tokenizer")), args)
    model.save(args.output)
    metrics = {
        "recipe": {k: v for k, v in vars(args).items() if k not in ("output", "look_every")},
        "known_digits": KNOWN,
        "parameters": sum(p.numel() for m in (model.text_encoder, model.unet) for p in m.parameters()),
        "sampling": {"steps": STEPS, "guidance": GUIDANCE},
        # Measured on what was written: fp16 weights read back.
        "metrics": measure(DigitModel.load(args.output)),
        "seconds": round(time.perf_counter() - start),
        "versions": versions(),
    }
    (args.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics["metrics"], indent=2))


if __name__ == "__main__":
    main()
