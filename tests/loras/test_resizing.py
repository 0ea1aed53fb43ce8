"""What comes out is the truncated SVD of the dense sum of what goes in, whatever kinds of files go in."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.resizing import Request, resize
from hina_kohya.loras.summing import Source
from tests.support import lora_files as files
from tests.support.dense import dense, truncated


def run(tmp_path, *sources, out="out.safetensors", **how):
    sources = tuple(each if isinstance(each, Source) else Source(each) for each in sources)
    return resize(Request(sources, tmp_path / out, **how))


def ranks_of(path):
    return {key.removesuffix(".lora_down.weight"): tensor.shape[0]
            for key, tensor in load_file(path).items() if key.endswith(".lora_down.weight")}  # fmt: skip


def assert_truncated(source_sum, path, tolerance=1e-6):
    result, ranks = dense(path), ranks_of(path)
    assert set(result) <= set(source_sum)
    for name, whole in source_sum.items():
        expected = truncated(whole, ranks.get(name, 0))
        found = result.get(name, torch.zeros_like(whole))
        assert (found - expected).norm() <= tolerance * whole.norm(), name


@pytest.mark.parametrize("kind", files.KINDS)
@pytest.mark.parametrize("how", [{"keep": 1.0}, {"rank": 2}, {"keep": 0.8}], ids=str)
def test_every_kind_of_file_becomes_its_truncated_svd(tmp_path, kind, how):
    files.lycoris(tmp_path / "in.safetensors", kind)
    run(tmp_path, tmp_path / "in.safetensors", **how)
    assert_truncated(dense(tmp_path / "in.safetensors"), tmp_path / "out.safetensors")


@pytest.mark.parametrize("kind", files.KINDS)
def test_lycoris_computes_the_same_outputs_from_the_result(tmp_path, kind):
    before = files.lycoris(tmp_path / "in.safetensors", kind)
    run(tmp_path, tmp_path / "in.safetensors", keep=1.0)
    after = files.loaded_by_lycoris(tmp_path / "out.safetensors")
    assert set(after) == set(before)
    for name, output in before.items():
        assert (after[name] - output).abs().max() <= 1e-5 * output.abs().max(), name


@pytest.mark.parametrize(("one", "other"), [("lora", "loha"), ("lokr", "locon_tucker"), ("lokr_full", "full")])
@pytest.mark.parametrize("how", [{"keep": 1.0}, {"rank": 3}])
def test_files_with_weights_become_their_sum(tmp_path, one, other, how):
    files.lycoris(tmp_path / "a.safetensors", one, seed=1)
    files.lycoris(tmp_path / "b.safetensors", other, seed=2)
    run(tmp_path, Source(tmp_path / "a.safetensors", 0.8), Source(tmp_path / "b.safetensors", -0.5), **how)
    a, b = dense(tmp_path / "a.safetensors", 0.8), dense(tmp_path / "b.safetensors", -0.5)
    assert_truncated({name: a[name] + b[name] for name in a}, tmp_path / "out.safetensors")


def test_a_file_less_itself_is_nothing(tmp_path):
    files.plain(tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match="every module is zero"):
        run(tmp_path, Source(tmp_path / "a.safetensors"), Source(tmp_path / "a.safetensors", -1.0), keep=1.0)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_rank_of_a_sum_is_its_numerical_rank(tmp_path):
    files.plain(tmp_path / "a.safetensors", rank=4)
    result = run(tmp_path, Source(tmp_path / "a.safetensors", 0.5), Source(tmp_path / "a.safetensors", 2.0), keep=1.0)
    assert set(result.ranks) == {4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_scale_is_one_and_the_dtype_is_the_inputs(tmp_path, dtype):
    files.plain(tmp_path / "a.safetensors", dtype=dtype)
    run(tmp_path, tmp_path / "a.safetensors", rank=2)
    for key, tensor in load_file(tmp_path / "out.safetensors").items():
        if key.endswith("alpha"):
            assert float(tensor) == ranks_of(tmp_path / "out.safetensors")[key.removesuffix(".alpha")]
        else:
            assert tensor.dtype is dtype


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.02, 1.2), seed=st.integers(0, 5), entries=st.integers(0, 400))
def test_a_size_is_never_passed_and_nearly_reached(tmp_path_factory, share, seed, entries):
    folder = tmp_path_factory.mktemp("size")
    shapes = {f"lora_unet_blocks_{i}": (60 + 7 * i, 50 + 11 * (i % 3)) for i in range(30)}
    metadata = {"ss_tag_frequency": "x" * entries, "ss_training_comment": "späť"}
    files.plain(folder / "a.safetensors", shapes, rank=12, seed=seed, decay=0.8, metadata=metadata)
    whole = run(folder, folder / "a.safetensors", keep=1.0, out="whole.safetensors").bytes
    limit = int(share * whole)
    try:
        result = run(folder, folder / "a.safetensors", size=limit)
    except AdapterError as error:
        least = int(str(error).split(" is below ")[1].split(",")[0])
        assert limit < least <= 6000
        assert run(folder, folder / "a.safetensors", size=least).ranks
        return
    assert result.bytes <= limit
    assert (folder / "out.safetensors").stat().st_size == result.bytes
    dearest = max(4 * (m + n) for m, n in shapes.values()) + 400
    assert limit >= whole or limit - result.bytes <= dearest


def test_a_rank_is_the_bytes_of_that_rank_and_keeps_more(tmp_path):
    shapes = {f"lora_unet_blocks_{i}": (40, 30) for i in range(8)}
    tensors = files.plain(tmp_path / "a.safetensors", shapes, rank=8)
    for number, name in enumerate(shapes):
        tensors[f"{name}.lora_up.weight"] *= 2.0**-number
    save_file(tensors, tmp_path / "a.safetensors")
    result = run(tmp_path, tmp_path / "a.safetensors", rank=2)
    cut = {
        key: tensor[:2] if "down" in key else tensor[:, :2] if "up" in key else tensor
        for key, tensor in tensors.items()
    }
    save_file({key: tensor.contiguous() for key, tensor in cut.items()}, tmp_path / "cut.safetensors")
    uniform_file = run(tmp_path, tmp_path / "cut.safetensors", keep=1.0, out="uniform.safetensors")
    assert uniform_file.bytes - 4 * 70 - 300 <= result.bytes <= uniform_file.bytes + 80  # words of the metadata
    whole = dense(tmp_path / "a.safetensors")
    uniform = sum(truncated(matrix, 2).square().sum() for matrix in whole.values())
    assert result.energy > float(uniform / sum(matrix.square().sum() for matrix in whole.values()))


def test_keep_keeps_no_less_than_was_asked_for(tmp_path):
    files.plain(tmp_path / "a.safetensors", rank=6)
    for keep in (0.3, 0.9, 0.999):
        run(tmp_path, tmp_path / "a.safetensors", keep=keep)
        whole, result = dense(tmp_path / "a.safetensors"), dense(tmp_path / "out.safetensors")
        kept = sum(matrix.square().sum() for matrix in result.values())
        assert kept >= (keep - 1e-6) * sum(matrix.square().sum() for matrix in whole.values())


def test_metadata_is_carried_over_and_corrected(tmp_path):
    training = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "3",
        "ss_network_alpha": "2.0",
        "ss_network_args": '{"algo": "lokr"}',
        "ss_learning_rate": "0.0001",
        "ss_tag_frequency": '{"a": {"girl": 3}}',
        "ss_training_comment": "mine",
        "modelspec.title": "häh 日本",
        "sshs_model_hash": "f" * 64,
        "sshs_legacy_hash": "12345678",
    }
    files.lycoris(tmp_path / "a.safetensors", "lokr", metadata=training)
    result = run(tmp_path, tmp_path / "a.safetensors", keep=0.9)
    metadata = safe_open(tmp_path / "out.safetensors", "pt").metadata()
    for key in ("ss_learning_rate", "ss_tag_frequency", "modelspec.title"):
        assert metadata[key] == training[key]
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "Dynamic"
    assert "ss_network_args" not in metadata
    assert metadata["ss_training_comment"] == f"hina-kohya: {result.line}; mine"
    record = json.loads(metadata["hina_resize"])
    assert record["ss_network_args"] == training["ss_network_args"]
    assert "no data was looked at" in record["done"]


def test_hashes_are_those_of_sd_scripts(tmp_path):
    """As sd-scripts computes them: over the data, and over a window of the file with the ss_ metadata."""
    import hashlib

    shapes = {f"lora_unet_blocks_{i}": (300, 200) for i in range(12)}
    metadata = {
        "ss_network_dim": "64",
        "ss_x": "y" * 3000,
        "other": "z" * 500,
        "sshs_model_hash": "",
        "sshs_legacy_hash": "",
    }
    files.plain(tmp_path / "a.safetensors", shapes, rank=64, metadata=metadata, decay=1.0)
    run(tmp_path, tmp_path / "a.safetensors", keep=1.0)
    from safetensors.torch import save

    written = safe_open(tmp_path / "out.safetensors", "pt").metadata()
    data = save(load_file(tmp_path / "out.safetensors"), {k: v for k, v in written.items() if k.startswith("ss_")})
    start = 8 + int.from_bytes(data[:8], "little")
    assert written["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert written["sshs_legacy_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert len(data) > 0x110000


def test_the_library_writes_the_same_bytes(tmp_path):
    from hina_kohya.loras import writing

    tensors = files.plain(tmp_path / "a.safetensors", dtype=torch.float16) | {"x.alpha": torch.tensor(3.0)}
    layout = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}
    writing.write(tmp_path / "ours.safetensors", layout, {"a": "ä"}, tensors.__getitem__)
    save_file(tensors, tmp_path / "theirs.safetensors", {"a": "ä"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert writing.size(layout, {"a": "ä"}) == (tmp_path / "ours.safetensors").stat().st_size


def test_changes_of_norms_and_biases_are_added(tmp_path):
    one = {"lora_unet_x.w_norm": torch.tensor([1.0, 2.0]), "lora_unet_x.b_norm": torch.tensor([3.0, 4.0])}
    other = {"lora_unet_x.w_norm": torch.tensor([10.0, 20.0])}
    lora = files.plain(tmp_path / "a.safetensors", {"lora_unet_y": (6, 5)})
    save_file(lora | one, tmp_path / "a.safetensors")
    save_file(lora | other, tmp_path / "b.safetensors")
    run(tmp_path, tmp_path / "a.safetensors", Source(tmp_path / "b.safetensors", 0.5), rank=1)
    result = load_file(tmp_path / "out.safetensors")
    assert result["lora_unet_x.w_norm"].tolist() == [6.0, 12.0]
    assert result["lora_unet_x.b_norm"].tolist() == [3.0, 4.0]


def test_a_module_with_nothing_in_it_is_left_out(tmp_path):
    tensors = files.plain(tmp_path / "a.safetensors", {"lora_unet_x": (6, 5), "lora_unet_y": (6, 5)})
    tensors["lora_unet_x.lora_up.weight"].zero_()
    save_file(tensors, tmp_path / "a.safetensors")
    run(tmp_path, tmp_path / "a.safetensors", keep=1.0)
    assert set(ranks_of(tmp_path / "out.safetensors")) == {"lora_unet_y"}


def test_inputs_stay_as_they_are(tmp_path):
    files.plain(tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
    for target in ("a.safetensors", "link.safetensors", "../" + tmp_path.name + "/a.safetensors"):
        with pytest.raises(AdapterError, match="would be lost"):
            run(tmp_path, tmp_path / "a.safetensors", rank=1, out=target)
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert [each.name for each in sorted(Path(tmp_path).iterdir())] == ["a.safetensors", "link.safetensors"]


@pytest.mark.parametrize(("width", "dims"), [(768, 4), (1024, 2), (2048, 2)])
@pytest.mark.parametrize("kind", ["hada", "lokr"])
def test_sd1_has_convolutions_where_others_have_linear_layers(tmp_path, width, dims, kind):
    """LoHa and LoKr files do not say so: the width of the text encoder does."""

    def module(name, out, inputs):
        if kind == "hada":
            return {f"{name}.hada_w{i}_{side}": torch.rand(shape) for i in (1, 2)
                    for side, shape in (("a", (out, 2)), ("b", (2, inputs)))}  # fmt: skip
        return {f"{name}.lokr_w1": torch.rand(2, 2), f"{name}.lokr_w2": torch.rand(out // 2, inputs // 2)}

    attention = "lora_unet_down_blocks_0_attentions_0"
    tensors = module(f"{attention}_proj_in", 8, 8) | module(f"{attention}_transformer_blocks_0_attn2_to_k", 8, width)
    save_file(tensors, tmp_path / "a.safetensors")
    run(tmp_path, tmp_path / "a.safetensors", keep=1.0)
    result = load_file(tmp_path / "out.safetensors")
    assert result[f"{attention}_proj_in.lora_down.weight"].dim() == dims
    assert result[f"{attention}_transformer_blocks_0_attn2_to_k.lora_down.weight"].dim() == 2


def test_fp8_becomes_bf16_and_two_halves_fp32(tmp_path):
    low = files.plain(tmp_path / "a.safetensors", {"lora_unet_x": (16, 8)}, dtype=torch.float8_e4m3fn)
    run(tmp_path, tmp_path / "a.safetensors", keep=1.0)
    assert load_file(tmp_path / "out.safetensors")["lora_unet_x.lora_up.weight"].dtype is torch.bfloat16
    whole, result = dense(tmp_path / "a.safetensors"), dense(tmp_path / "out.safetensors")
    assert low
    assert (whole["lora_unet_x"] - result["lora_unet_x"]).norm() <= 1e-2 * whole["lora_unet_x"].norm()
    files.plain(tmp_path / "b.safetensors", {"lora_unet_x": (16, 8)}, dtype=torch.float16)
    files.plain(tmp_path / "c.safetensors", {"lora_unet_x": (16, 8)}, dtype=torch.bfloat16)
    run(tmp_path, tmp_path / "b.safetensors", tmp_path / "c.safetensors", keep=1.0)
    assert load_file(tmp_path / "out.safetensors")["lora_unet_x.lora_up.weight"].dtype is torch.float32


def test_metadata_of_several_files_is_what_all_say_alike(tmp_path):
    for seed, (name, rate) in enumerate((("a", "1"), ("b", "2"))):
        training = {"ss_sd_model_name": "base", "ss_learning_rate": rate}
        files.plain(tmp_path / f"{name}.safetensors", seed=seed, metadata=training)
    run(tmp_path, tmp_path / "a.safetensors", Source(tmp_path / "b.safetensors", 0.5), keep=1.0)
    metadata = safe_open(tmp_path / "out.safetensors", "pt").metadata()
    assert metadata["ss_sd_model_name"] == "base"
    assert "ss_learning_rate" not in metadata
    assert "a.safetensors + b.safetensors x 0.5" in metadata["ss_training_comment"]
    assert metadata["ss_network_dim"] == "8" == metadata["ss_network_alpha"]


def test_nobody_s_names_keep_their_endings(tmp_path):
    tensors = files.plain(tmp_path / "a.safetensors", {"lycoris_blocks_0": (6, 5)})
    run(tmp_path, tmp_path / "a.safetensors", keep=1.0)
    assert set(load_file(tmp_path / "out.safetensors")) == set(tensors)
    renamed = {key.replace("lycoris_", "model.").replace("lora_down", "lora_A").replace("lora_up", "lora_B"): tensor
               for key, tensor in tensors.items()}  # fmt: skip
    save_file(renamed, tmp_path / "b.safetensors")
    run(tmp_path, tmp_path / "b.safetensors", keep=1.0)
    assert set(load_file(tmp_path / "out.safetensors")) == set(renamed)
