"""The page: what it shows, what it says is missing, what it refuses, and that a name is only text."""

import html
import json
import os
import random
import re
import subprocess
import sys

import pytest
from PIL import Image

from hina_kohya.cli import main
from hina_kohya.watch import page, run, samples
from tests.support import run_folders as runs


def report(*words, code=0):
    assert main(["report", *map(str, words)]) == code


def text_of(folder, *others, **request):
    return page.render([run.read(run.Request(folder, **request)), *(run.read(run.Request(each)) for each in others)])


def plain(markup):
    """The words of a page."""
    return " ".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", markup, flags=re.DOTALL)).split())


@pytest.mark.slow
def test_all_of_a_run_is_on_the_page(cat, tmp_path, capsys):
    report(cat, "-o", tmp_path / "page.html")
    assert capsys.readouterr().out.startswith(f"written to {tmp_path / 'page.html'}, ")
    markup = (tmp_path / "page.html").read_text(encoding="utf-8")
    words = plain(markup)
    for what in ("sdxl_base.safetensors", "networks.lora dim 4 alpha 2", "AdamW(weight_decay=0.01)",
                 "lr 0.0001, cosine", "5_cat 24 images x 5", "bf16", "50 s, 500 ms per step",
                 "28 modules, LoRA, rank 4",
                 "it overfits since then", "cat-step00000080.safetensors", "unet down_blocks 1", "te1 layers 0",
                 "Frobenius norm", "effective rank", "learning rate", "prompt 2", "step 60"):  # fmt: skip
        assert what in words, what
    assert "not here" not in words
    for section in ("summary", "curves", "blocks", "samples", "settings", "files"):
        assert f'<section id="{section}">' in markup
        assert f'href="#{section}"' in markup
    assert markup.count("data:image/jpeg;base64,") == 6
    assert len(markup) < 300_000


@pytest.mark.slow
def test_the_page_asks_no_network_and_runs_no_script(cat):
    markup = text_of(cat)
    assert "<script" not in markup
    assert "default-src 'none'" in markup
    links = re.findall(r'(?:src|href)="(?!#|data:image/(?:png|jpeg);base64,)([^"]*)"', markup)
    assert links == []
    assert not re.search(r"@import|url\((?!#)", markup)


@pytest.mark.slow
def test_pictures_are_in_the_colours_of_the_page_and_share_no_names(cat):
    markup = text_of(cat)
    body = markup[markup.index("<body>") :]
    assert "stroke: var(--c0)" in body
    assert set(re.findall(r"#[0-9a-f]{6}\b", body)) <= {"#ffffff", "#000000"}  # what matplotlib leaves out
    names = re.findall(r' id="([^"]+)"', body)
    assert len(names) == len(set(names))
    for reference in re.findall(r'(?:url\(|href=")#([^")]+)', body):
        assert reference in names


EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>`$x$'
SAFE = EVIL.replace("/", "|")  # for names of files


@pytest.mark.slow
def test_names_are_only_text(tmp_path):
    """Of a folder, a file's metadata, a module, a tag, a picture, a TOML."""
    folder = tmp_path / SAFE
    more = {f"norm/{EVIL}": 1.0}
    runs.whole(folder, rates=(EVIL,), more=lambda step: more)
    (folder / "run.toml").write_text(f"output_name = '''{EVIL}'''\nnetwork_args = ['''a={EVIL}''']", encoding="utf-8")
    runs.adapter(folder / "last.safetensors", 120, names=[f"{EVIL}.layer", *runs.NAMES], ss_output_name=EVIL,
                 ss_training_comment=EVIL, ss_dataset_dirs=json.dumps({EVIL: {"img_count": EVIL}}),
                 ss_tag_frequency=json.dumps({"a": {EVIL: 3}}), **{EVIL: EVIL})  # fmt: skip
    Image.new("RGB", (8, 8)).save(folder / "sample" / f"{SAFE}_000001_00_20260101120000.png")
    (folder / "sample" / f"broken{SAFE}.png").write_bytes(b"no picture")
    markup = text_of(folder)
    assert EVIL in html.unescape(markup)
    assert "<script" not in markup
    assert "<img src=x" not in markup
    assert markup.count("&lt;script&gt;") >= 8
    for other in (text_of(folder, folder), text_of(folder, name="cat")):  # the latter names the former as missing
        assert EVIL in html.unescape(other)
        assert "<script" not in other
        assert "<img src=x" not in other


ODD = ["", "None", "nan", "-1", "1e300", "1e17", "[]", "null", '{"a": {"n_repeats": {"x": []}, "img_count": "9"}}',
       "[[[[", "\x00\x01", "日本語" * 50, "a" * 5000, "$\\frac{$", "{{1234567*7}}", "{% for %}",
       "]]>", "--><script>"]  # fmt: skip
KEYS = ("output_name", "steps", "training_started_at", "training_finished_at", "dataset_dirs", "tag_frequency",
        "full_bf16", "learning_rate", "max_train_steps", "num_validation_images", "mixed_precision",
        "network_args")  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_file_says_there_is_a_page(tmp_path, seed):
    pick = random.Random(seed)
    runs.adapter(tmp_path / "a.safetensors", names=runs.NAMES[:3], **{f"ss_{key}": pick.choice(ODD) for key in KEYS})
    losses = [float(pick.choice(["nan", "inf", "0", "-1", "1"])) for _ in range(40)]
    runs.log(tmp_path / "logs", steps=pick.choice([1, 2, 30]), every=1, held_out=losses.__getitem__, rates=ODD[1:4],
             loss=losses.__getitem__, more=lambda step: {name or "x": step / 9 for name in ODD[seed:]})  # fmt: skip
    judged = pick.choice([None, 1, "x", {"taught": 1}, {"taught": {"before": {"accuracy": "x"}}}])
    demo = {"settings": {"a": pick.choice([None, 1, [], {}])}, "versions": {"b": pick.choice(ODD)}, "judged": judged}
    (tmp_path / "summary.json").write_text(json.dumps(demo))
    (tmp_path / "x.toml").write_text("output_name = 3\nmax_train_steps = 'x'\nlogging_dir = 5\n[a.b]\nc = 1")
    markup = text_of(tmp_path, tmp_path) if seed % 2 else text_of(tmp_path)
    assert "<script" not in markup
    assert "8641969" not in markup
    assert markup.endswith("</html>")


@pytest.mark.slow
def test_what_a_page_is_not_to_tell(tmp_path):
    runs.adapter(tmp_path / "cat.safetensors")
    lines = ["huggingface_token = 'hf_SECRET'", "wandb_api_key = 'wk_SECRET'", "keep_tokens = 3", "output_name = 'cat'"]
    (tmp_path / "cat.toml").write_text("[any]\n" + "\n".join(lines))
    markup = text_of(tmp_path)
    assert "SECRET" not in markup
    assert "(hidden)" in markup
    assert re.search(r"keep_tokens</th><td>3<", markup)


def test_the_options_stand_in_where_a_file_says_nothing(tmp_path):
    runs.log(tmp_path / "logs")
    (tmp_path / "run.toml").write_text(
        '[network]\nnetwork_module = "networks.lora"\nnetwork_dim = 16\n[o]\noptimizer_type = "Lion8bit"'
    )
    words = plain(text_of(tmp_path))
    assert "networks.lora dim 16" in words
    assert "optimizer Lion8bit" in words
    assert "No adapter that can be read" in words


@pytest.mark.slow
def test_what_is_missing_is_said_with_what_switches_it_on(tmp_path):
    runs.adapter(tmp_path / "cat.safetensors")
    words = plain(text_of(tmp_path))
    for what in ("--logging_dir logs --log_with tensorboard", "--sample_prompts prompts.txt"):
        assert what in words
    assert 'id="curves"' not in text_of(tmp_path)
    runs.log(tmp_path / "logs", held_out=None)
    words = plain(text_of(tmp_path))
    assert "--log_with tensorboard" not in words
    assert "--validation_split 0.1" in words


def test_logs_elsewhere(tmp_path):
    (tmp_path / "out").mkdir()
    runs.adapter(tmp_path / "out" / "cat.safetensors")
    runs.log(tmp_path / "logs")
    request = run.Request(tmp_path / "out")
    assert not run.read(request).curves
    assert "loss/current" in run.read(run.Request(tmp_path / "out", tmp_path / "logs")).curves
    (tmp_path / "run.toml").write_text(f'output_name = "cat"\nlogging_dir = "{tmp_path / "logs"}"')
    assert "loss/current" in run.read(run.Request(tmp_path / "out", config=tmp_path / "run.toml")).curves


def test_logs_of_another_run_are_not_this_run_s(tmp_path):
    runs.adapter(tmp_path / "cat.safetensors", ss_training_started_at=str(runs.START + 86_400),
                 ss_training_finished_at=str(runs.START + 90_000))  # fmt: skip
    runs.log(tmp_path / "logs")
    record = run.read(run.Request(tmp_path))
    assert not record.curves
    assert any("1 other start of a trainer logged here" in line for line in record.missing)


@pytest.mark.slow
def test_a_run_that_did_not_end_says_where_it_is(tmp_path):
    runs.adapter(tmp_path / "cat-step00000040.safetensors", 40, ss_max_train_steps="100")
    runs.log(tmp_path / "logs", steps=57)
    assert "progress step 57 of 100: still running, or stopped" in plain(text_of(tmp_path))
    runs.log(tmp_path / "all", steps=100)
    assert "still running" not in plain(text_of(tmp_path, logging_dir=tmp_path / "all"))


def test_two_runs_in_one_folder(tmp_path):
    runs.adapter(tmp_path / "dog.safetensors", 50, ss_output_name="dog")
    runs.adapter(tmp_path / "cat-000002.safetensors", 60)
    runs.adapter(tmp_path / "cat.safetensors", 100)
    record = run.read(run.Request(tmp_path))
    assert (record.name, [each.step for each in record.saved]) == ("cat", [60, 100])
    assert any("Other runs saved to this folder: dog" in line for line in record.missing)
    assert run.read(run.Request(tmp_path, name="dog")).adapter.path.name == "dog.safetensors"


@pytest.mark.slow
def test_a_file_of_nan_is_said_and_the_one_before_is_shown(tmp_path, capsys):
    runs.adapter(tmp_path / "cat-step00000050.safetensors", 50)
    runs.adapter(tmp_path / "cat.safetensors", 100, text=float("nan"))
    report(tmp_path)
    assert "NaN or infinite" in capsys.readouterr().err
    words = plain((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "cat.safetensors: 96 of 96 values" in words
    assert "cat-step00000050.safetensors: 0.03 MB" in words


@pytest.mark.slow
def test_a_damaged_file_is_a_line_with_its_name(tmp_path, capsys):
    runs.whole(tmp_path)
    (tmp_path / "cat-step00000080.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    [events] = (tmp_path / "logs").rglob("events.*")
    events.write_bytes(events.read_bytes()[:-5])
    (tmp_path / "sample" / "cat_000080_00_20260101120000_42.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "summary.json").write_text("{")
    (tmp_path / "cat.toml").write_text("output_name = ")
    report(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    words = plain((tmp_path / "report.html").read_text(encoding="utf-8"))
    for name in ("cat-step00000080.safetensors", events.name, "cat_000080_00", "summary.json", "cat.toml"):
        assert sum(name in line for line in lines) == 1, name
        assert name in words
    assert all(line.startswith("hina-kohya report: note: ") for line in lines)
    assert len(lines) == 5


def error(capsys, *words):
    report(*words, code=2)
    [line] = capsys.readouterr().err.splitlines()
    return line.removeprefix("hina-kohya report: error: ")


def test_no_run_there(tmp_path, capsys):
    assert error(capsys, tmp_path) == (
        f"{tmp_path} holds no run: no .safetensors, no TensorBoard events, no samples; give the trainer's --output_dir"
    )
    assert error(capsys, tmp_path / "none").startswith(f"there is no folder {tmp_path / 'none'}")
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert error(capsys, tmp_path / "x.safetensors", "-o", tmp_path / "y.html").startswith(
        f"{tmp_path / 'x.safetensors'} is a file; give the folder"
    )
    assert error(capsys, tmp_path) == f"{tmp_path / 'x.safetensors'} is empty; get it again"
    assert not list(tmp_path.glob("*.html"))


def test_a_request_that_cannot_be_met(cat, tmp_path, capsys):
    assert "there is no run dog in the folder, only cat" in error(
        capsys, cat, "-o", tmp_path / "a.html", "--name", "dog"
    )
    assert "there is no folder nowhere" in error(capsys, cat, "-o", tmp_path / "a.html", "--logging_dir", "nowhere")
    assert "is no readable TOML" in error(capsys, cat, "-o", tmp_path / "a.html", "--config", tmp_path / "none.toml")
    assert "must end with .html" in error(capsys, cat, "-o", tmp_path / "a.safetensors")
    assert "holds no run" in error(capsys, cat, "-o", tmp_path / "a.html", "--compare", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_nothing_else_is_ever_overwritten(tmp_path, capsys):
    runs.adapter(tmp_path / "cat.safetensors")
    before = (tmp_path / "cat.safetensors").read_bytes()
    target = tmp_path / "report.html"
    os.link(tmp_path / "cat.safetensors", target)
    assert "is a file that is read, and would be lost" in error(capsys, tmp_path) or "no report of ours" in error(
        capsys, tmp_path
    )
    assert (tmp_path / "cat.safetensors").read_bytes() == before == target.read_bytes()
    target.unlink()
    target.write_text("<html>mine</html>")
    assert "is there and is no report of ours" in error(capsys, tmp_path)
    assert target.read_text() == "<html>mine</html>"
    target.unlink()
    report(tmp_path)
    report(tmp_path)  # its own older page
    target.unlink()
    target.mkdir()
    assert "is a folder; name a file in it" in error(capsys, tmp_path)


@pytest.mark.slow
def test_the_page_appears_whole_or_not_at_all(cat, tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    report(cat, "-o", target)
    before = target.read_bytes()
    monkeypatch.setattr("hina_kohya.watch.page.render", lambda *_: "\x00" * 10)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    report(cat, "-o", target, code=2)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.slow
def test_two_runs_side_by_side(cat, tmp_path):
    other = runs.whole(tmp_path / "other", held_out=lambda step: runs.turning(step, 60))
    runs.adapter(other / "cat.safetensors", seed=100, ss_learning_rate="0.0003", names=runs.NAMES)
    markup = text_of(cat, other)
    words = plain(markup)
    assert f"A: cat in {cat}" in words
    assert f"B: cat in {other}" in words
    assert re.search(r'class="differs"><th scope="row">rates', markup)
    assert not re.search(r'class="differs"><th scope="row">optimizer', markup)
    assert "lr 0.0003, cosine" in words
    assert "lowest at step 40" in words
    assert "lowest at step 60" in words
    # The same adapter in both.
    assert re.search(r"unet down_blocks 1</td>\s*<td class=\"number\">\+1.000", markup)
    assert "Spectra of B" in words


@pytest.mark.slow
def test_adapters_of_two_models_are_shown_and_not_compared(cat, tmp_path):
    runs.adapter(tmp_path / "x.safetensors", names=["lora_unet_single_blocks_0_linear1"], ss_output_name="x")
    words = plain(text_of(cat, tmp_path))
    assert "How alike they are cannot be said" in words
    assert "have no module in common" in words


@pytest.mark.slow
def test_samples_are_chosen_evenly_and_small(tmp_path):
    runs.samples(tmp_path, steps=range(10, 310, 10), prompts=8)
    (tmp_path / "sample" / "clip.mp4").write_bytes(b"")
    found = samples.gather(tmp_path, "cat")
    assert [prompt for prompt, _ in found.rows] == [f"prompt {number}" for number in range(1, 7)]
    titles = [picture.title for picture in found.rows[0][1]]
    assert len(titles) == samples.MOST_STEPS
    assert (titles[0], titles[-1]) == ("step 10", "step 300")
    assert all(max(picture.width, picture.height) == 320 for _, row in found.rows for picture in row)
    assert (found.shown, found.count, found.videos) == (48, 240, 1)
    assert "48 of 240 pictures" in plain(text_of(tmp_path))


@pytest.mark.parametrize(
    ("name", "title", "prompt"),
    [
        ("cat_e000003_01_20260101120000_42.png", "epoch 3", "prompt 2"),
        ("e000003_00_20260101120000.png", "epoch 3", "prompt 1"),
        ("my_cat_000100_02_20260101120000_1234_000.png", "step 100", "prompt 3"),  # musubi-tuner's grid
        ("mine.png", "mine.png", "others"),
    ],
)
def test_names_of_samples(tmp_path, name, title, prompt):
    (tmp_path / "sample").mkdir()
    Image.new("L", (40, 30)).save(tmp_path / "sample" / name)
    [(row, [picture])] = samples.gather(tmp_path, "other").rows
    assert (picture.title, row) == (title, prompt)


@pytest.mark.slow
def test_what_else_was_logged_is_drawn(tmp_path):
    blocks = [f"block_{number}" for number in range(12)]
    runs.log(tmp_path, more=lambda step: {f"update_ratio/{name}": 1e-3 * step for name in blocks} | {"norm/max": step})
    words = plain(text_of(tmp_path))
    assert "log10 of update_ratio" in words
    assert "block_11" in words
    assert "norm" in words


def test_prodigy_s_own_rate_takes_the_place_of_the_factor(tmp_path):
    from hina_kohya.watch.curves import rate_curves

    runs.log(tmp_path, more=lambda step: {"lr/d*lr/unet": 3e-4, "lr/textencoder": 1e-5})
    curves = rate_curves(run.read(run.Request(tmp_path)))
    assert set(curves) == {"unet (d x lr)", "textencoder"}
    assert float(curves["unet (d x lr)"].values[0]) == pytest.approx(3e-4)


@pytest.mark.slow
def test_a_long_run_is_a_small_page(tmp_path):
    runs.log(tmp_path, steps=20_000, rates=("unet", "te1"), every=100, held_out=lambda step: 0.1)
    assert len(text_of(tmp_path)) < 400_000


@pytest.mark.slow
@pytest.mark.usefixtures("forked_python")
def test_the_demo(tmp_path, capsys):
    words = ["--config_file", "configs/training/digits_lokr.toml", "--max_train_steps", "6",
             "--lr_warmup_steps", "2", "--judge", "10",
             "--output_dir", tmp_path, "--logging_dir", tmp_path / "logs"]  # fmt: skip
    command = [sys.executable, "-m", "hina_kohya.cli", "train", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)
    report(tmp_path)
    assert capsys.readouterr().err == ""
    markup = (tmp_path / "report.html").read_text(encoding="utf-8")
    words = plain(markup)
    for what in ("digits_lokr", "lycoris.kohya dim 16", "HinaAdamW(use_alora=True)", "LoKr", "taught digits: ",
                 "textencoder, unet", "Options of hina-kohya train"):  # fmt: skip
        assert what in words, what
    assert 'class="sheet"' in markup


def test_effective_rank_counts_equal_directions():
    import torch

    from hina_kohya.watch.blocks import effective_rank

    assert effective_rank(torch.ones(7, dtype=torch.float64)) == pytest.approx(7)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0.0


def test_a_missing_library_is_named(cat, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    missing = "tensorboard.backend.event_processing.event_file_loader"
    assert main(["report", str(cat), "-o", str(tmp_path / "a.html")]) == 2
    assert f'{missing.partition(".")[0]} is missing; pip install "hina-kohya[report]"' in capsys.readouterr().err
