"""Files that are damaged, lie, or are something else: one line with value, bound and what to do; exit code 2."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from hina_kohya.cli import main
from tests.support import lora_files as files

ROOT = Path(__file__).parents[2]


def lora(**changes):
    """Bytes of a sound file, with some tensors changed (None: left out)."""
    tensors = {
        "lora_unet_x.lora_down.weight": torch.ones(2, 5),
        "lora_unet_x.lora_up.weight": torch.ones(6, 2),
        "lora_unet_x.alpha": torch.tensor(2.0),
    }
    for part, tensor in changes.items():
        tensors[f"lora_unet_x.{part.replace('__', '.')}"] = tensor
    return save({key: tensor for key, tensor in tensors.items() if tensor is not None})


def header(table, data=b""):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FACTOR = "lora_unet_x.lora_down.weight"
BAD = {
    "empty": (b"", "is empty"),
    "short": (b"abc", "first 8 bytes"),
    "text": (b"these are notes about my training, not a file of weights\n", "promise a header of"),
    "huge header": ((1 << 62).to_bytes(8, "little") + b"{}", "promise a header of 4611686018427387904 bytes"),
    "header past the end": ((500).to_bytes(8, "little") + b"{}", "at most 2 can be there"),
    "header no JSON": (header(b"{nonsense}"), "its header is no JSON"),
    "deep JSON": (header(b"[" * 50_000), "its header is no JSON"),
    "header a list": (header([1, 2]), "no table of tensors"),
    "header of numbers": (header({FACTOR: 3}), "no table of tensors"),
    "no shape": (header({FACTOR: {"dtype": "F32"}}), "the entry of"),
    "negative shape": (header({FACTOR: entry([-1, 5], 0, 4)}, b"0000"), "the entry of"),
    "endless shape": (header({FACTOR: entry([1 << 40, 1 << 40], 0, 4)}, b"0000"), "the entry of"),
    "offsets past the end": (header({FACTOR: entry([2, 5], 0, 40)}, b"0000"), "is damaged"),
    "offsets that overlap": (
        header({FACTOR: entry([1], 0, 4), "lora_unet_x.lora_up.weight": entry([1], 0, 4)}, b"0000"),
        "is damaged",
    ),
    "shape unlike its bytes": (header({FACTOR: entry([2, 5], 0, 4)}, b"0000"), "is damaged"),
    "dtype nobody knows": (header({FACTOR: entry([1], 0, 4, "F12")}, b"0000"), "is damaged"),
    "cut off": (lora()[:-10], "is damaged"),
    "trailing bytes": (lora() + b"123", "is damaged"),
    "no tensors": (save({}), "is no adapter: it has no tensors"),
    "base model": (
        save({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)}),
        "is no adapter: it has 1 tensors, the first model.diffusion_model.input_blocks.0.0.weight",
    ),
    "something beside": (lora(other=torch.ones(2)), "1 of 4 tensors are of no LoRA"),
    "no up": (lora(lora_up__weight=None), "has alpha, down and no up"),
    "alpha alone": (lora(lora_up__weight=None, lora_down__weight=None), "it has 1 tensors"),
    "half a LoHa": (save({"x.hada_w1_a": torch.ones(2, 2), "x.hada_w1_b": torch.ones(2, 2)}), "no hada_w2_a, hada_w2"),
    "half a LoKr": (save({"x.lokr_w1": torch.ones(2, 2), "x.lokr_w2_a": torch.ones(2, 2)}), "no lokr_w2_b"),
    "Tucker without its factors": (save({"x.lokr_w1": torch.ones(2, 2), "x.lokr_w2": torch.ones(2, 2),
                                         "x.lokr_t2": torch.ones(2, 2)}), "no lokr_w2_a, lokr_w2_b"),
    "two in one": (lora(diff=torch.ones(6, 5)), "two adapters in one"),
    "magnitude alone": (save({"x.dora_scale": torch.ones(2, 1)}), "a dora_scale and no factors"),
    "ranks": (lora(lora_up__weight=torch.ones(6, 3)), "the up factor has rank 3 and the down factor 2"),
    "NaN": (lora(lora_up__weight=torch.full((6, 2), float("nan"))), "12 of 12 values of lora_unet_x.lora_up.weight"),
    "infinite": (lora(lora_down__weight=torch.full((2, 5), float("inf"))), "are NaN or infinite"),
    "integers": (lora(lora_up__weight=torch.ones(6, 2, dtype=torch.int8)), "is I8, not one of"),
    "no rows": (lora(lora_up__weight=torch.ones(0, 2)), "is empty"),
    "alpha of two": (lora(alpha=torch.ones(2)), "has 2 values and not 1"),
    "alpha zero": (lora(alpha=torch.tensor(0.0)), "sd-scripts reads as the rank and ComfyUI as nothing"),
    "twice": (lora(lora_A__weight=torch.ones(2, 5)), "are the same thing"),
    "OFT": (save({"lora_unet_x.oft_blocks": torch.ones(2, 3, 3)}), "belongs to OFT or BOFT, which rotate"),
    "IA3": (save({"lora_unet_x.weight": torch.ones(3, 1), "lora_unet_x.on_input": torch.ones(1)}), "belongs to (IA)3"),
    "GLoRA": (save({"lora_unet_x.a1.weight": torch.ones(3, 1)}), "belongs to GLoRA"),
    "ADLRNS": (lora(adlrns_kept=torch.ones(1, 2)), "hina-kohya adlrns export"),
    "zeros": (lora(lora_up__weight=torch.zeros(6, 2)), "every module is zero"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["resize", "merge", "inspect"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line(tmp_path, kind, command, capsys):
    content, message = BAD[kind]
    if command == "inspect" and kind == "zeros":
        pytest.skip("zeros can be looked at")
    path, out = tmp_path / "bad.safetensors", tmp_path / "out.safetensors"
    path.write_bytes(content)
    words = {"resize": ["--rank", "1", "-o", str(out)], "merge": ["-o", str(out)], "inspect": []}[command]
    assert main([command, str(path), *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith(f"hina-kohya {command}: error: ")
    assert str(path) in said.err
    assert said.err.count("\n") == 1
    assert len(said.err) < 500
    assert [each.name for each in tmp_path.iterdir()] == ["bad.safetensors"]


def test_every_cut_of_a_file_is_refused(tmp_path, capsys):
    content = lora()
    path = tmp_path / "cut.safetensors"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert main(["merge", str(path), "-o", str(tmp_path / "out.safetensors")]) == 2
    assert not (tmp_path / "out.safetensors").exists()
    assert capsys.readouterr().err.count("\n") == len(range(0, len(content), 7))


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
def test_a_pickle_is_never_loaded(tmp_path, suffix, capsys):
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (trap,))

    torch.save({"lora_unet_x.alpha": torch.ones(1)}, tmp_path / f"zip{suffix}")
    (tmp_path / f"old{suffix}").write_bytes(pickle.dumps(Trap()))
    for name in ("zip", "old"):
        assert main(["merge", str(tmp_path / f"{name}{suffix}"), "-o", str(tmp_path / "out.safetensors")]) == 2
        assert "is a pickle of torch.save" in capsys.readouterr().err
    assert not trap.exists()


def test_words_that_are_wrong(tmp_path, capsys):
    files.plain(tmp_path / "a.safetensors")
    file, out = str(tmp_path / "a.safetensors"), str(tmp_path / "out.safetensors")
    for words, message in [
        ([file, "--size", "20 parsecs", "-o", out], "write 20MB, 19MiB, 20000000 or 25%"),
        ([file, "--size", "1kB", "-o", out], "is below"),
        ([file, "--rank", "0", "-o", out], "must be at least 1"),
        ([file, "--keep", "98", "-o", out], "must be above 0 and at most 1"),
        ([file + ":x", "--rank", "2", "-o", out], "must be a number"),
        ([file + ":0", "--rank", "2", "-o", out], "must be finite and not 0"),
        ([file + ":nan", "--rank", "2", "-o", out], "must be finite and not 0"),
        ([file, "--rank", "2", "-o", file], "would be lost"),
        ([file, "--rank", "2", "-o", str(tmp_path / "out.pt")], "must end with .safetensors"),
        ([file, "--rank", "2", "-o", str(tmp_path)], "must end with .safetensors"),
        ([str(tmp_path / "b.safetensors"), "--rank", "2", "-o", out], "there is no file"),
        ([str(tmp_path / "b.safetensors"), "--size", "25%", "-o", out], "there is no file"),
        ([str(tmp_path), "--rank", "2", "-o", out], "is a folder"),
    ]:
        assert main(["resize", *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_files_of_different_base_models(tmp_path, capsys):
    files.plain(tmp_path / "a.safetensors", {"lora_unet_x": (6, 5)})
    files.plain(tmp_path / "b.safetensors", {"lora_unet_x": (6, 7)})
    words = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "-o", str(tmp_path / "out.safetensors")]
    assert main(["merge", *words]) == 2
    assert "lora_unet_x is 6 x 5, 6 x 7 in these files; they are of different base models" in capsys.readouterr().err


def test_values_too_large_for_fp16_are_not_written(tmp_path, capsys):
    tensors = files.plain(tmp_path / "a.safetensors", {"lora_unet_x": (6, 5)})
    save_file({key: tensor * 1e6 for key, tensor in tensors.items()}, tmp_path / "a.safetensors")
    words = [str(tmp_path / "a.safetensors"), "--dtype", "fp16", "-o", str(tmp_path / "out.safetensors")]
    assert main(["merge", *words]) == 2
    assert "too large for F16; --dtype bf16" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
def test_kill_while_writing_leaves_the_old_file_whole(tmp_path):
    files.plain(tmp_path / "a.safetensors", {f"lora_unet_{i}": (400, 300) for i in range(60)}, rank=32, decay=1.0)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"what was there before")
    code = f"""
import signal, os
from hina_kohya.loras import slots
true = slots.Slot.tensor
def slow(self, key, rank):
    if "_30." in key:
        print("half", flush=True); signal.pause()
    return true(self, key, rank)
slots.Slot.tensor = slow
from hina_kohya.cli import main
main(["merge", {str(tmp_path / "a.safetensors")!r}, "-o", {str(out)!r}])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "half\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    assert out.read_bytes() == b"what was there before"
    leftover = [each.name for each in tmp_path.iterdir() if each.name not in ("a.safetensors", "out.safetensors")]
    assert all(name.startswith(".") for name in leftover)
    assert main(["merge", str(tmp_path / "a.safetensors"), "-o", str(out)]) == 0
    assert out.stat().st_size > 1e6
