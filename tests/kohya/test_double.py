"""The double keeps the contract of SD_SCRIPTS.md, and so does sd-scripts itself where there is a checkout.

One test a rule that a plugin meets. `trainer.ask` calls one function, see contract.py. Whole trainings are in
test_double_training.py.
"""

import pytest

HERE = "tests.support.contract"


def failed(answer, error, words=""):
    return answer.get("error") == error and words in answer["message"]


# 2. --optimizer_type


@pytest.mark.old_layout_too
@pytest.mark.parametrize("name", ["AdamW", "adamw", "ADAMW", ""])
def test_known_names_in_any_case_and_adamw_by_default(trainer, name):
    assert trainer.ask("optimizer", name)["class"] == "torch.optim.adamw.AdamW"


def test_a_name_without_a_dot_is_a_class_of_torch_as_written(trainer):
    assert trainer.ask("optimizer", "RAdam")["class"] == "torch.optim.radam.RAdam"
    assert failed(trainer.ask("optimizer", "radam"), "AttributeError", "radam")
    assert failed(trainer.ask("optimizer", "HinaAdamW"), "AttributeError", "HinaAdamW")


def test_a_name_with_a_dot_is_imported(trainer):
    made = trainer.ask("optimizer", f"{HERE}.Recorder", ["a=1"])
    assert (made["class"], made["name"], made["args"]) == (f"{HERE}.Recorder", f"{HERE}.Recorder", "a=1")
    assert failed(trainer.ask("optimizer", f"{HERE}.Nothing"), "AttributeError")
    assert failed(trainer.ask("optimizer", "nowhere.Nothing"), "ModuleNotFoundError")


def test_a_factory_will_do_and_its_own_name_is_recorded(trainer):
    made = trainer.ask("optimizer", f"{HERE}.make_recorder")
    assert (made["class"], made["name"]) == (f"{HERE}.Recorder", f"{HERE}.make_recorder")


def test_the_place_of_definition_is_recorded_not_the_path_typed(trainer):
    assert trainer.ask("optimizer", "torch.optim.AdamW")["name"] == "torch.optim.adamw.AdamW"


@pytest.mark.parametrize(("name", "package"), [("8bit", "bitsandbytes"), ("ScheduleFree", "schedulefree")])
def test_some_endings_need_a_package_first(trainer, name, package):
    path = f"{HERE}.Recorder{name}"
    assert failed(trainer.ask("optimizer", path, absent=[package]), "ImportError", package)
    assert trainer.ask("optimizer", path, present=[package])["class"] == path


def test_a_path_that_begins_with_dadapt_never_arrives(trainer):
    path = "dadaptish.Recorder"
    assert failed(trainer.ask("optimizer", path, absent=["dadaptation"]), "ImportError", "dadaptation")
    assert failed(trainer.ask("optimizer", path, present=["dadaptation"]), "ValueError")


@pytest.mark.parametrize(
    ("name", "package"),
    [("Prodigy", "prodigyopt"), ("DAdaptAdam", "dadaptation"), ("Lion", "lion_pytorch"), ("AdamW8bit", "bitsandbytes")],
)
def test_optimizers_of_other_packages(trainer, name, package):
    assert trainer.ask("optimizer", name, present=[package])["class"] == f"{HERE}.Recorder"


def test_old_flags(trainer):
    assert trainer.ask("optimizer", "", use_8bit_adam=True, present=["bitsandbytes"])["class"] == f"{HERE}.Recorder"
    assert failed(trainer.ask("optimizer", "AdamW", use_8bit_adam=True), "AssertionError")
    assert failed(trainer.ask("optimizer", "AdamW", use_lion_optimizer=True), "AssertionError")


def test_nesterov_has_momentum(trainer):
    made = trainer.ask("optimizer", "SGDNesterov")
    assert (made["class"], made["args"]) == ("torch.optim.sgd.SGD", "momentum=0.9")
    assert made["defaults"]["nesterov"] == "True"


def test_prodigy_looks_into_the_first_group(trainer):
    assert failed(trainer.ask("optimizer", "Prodigy", groups=False, present=["prodigyopt"]), "IndexError")


def test_adafactor_takes_the_groups_rates_away(trainer):
    made = trainer.ask("optimizer", "Adafactor", unet_lr=1.0)
    assert made["class"] == "transformers.optimization.Adafactor"
    assert (made["lr"], made["learning_rate"], made["lr_scheduler"]) == (None, None, "adafactor:0.001")
    made = trainer.ask("optimizer", "Adafactor", ["relative_step=False", "scale_parameter=False"])
    assert (made["lr"], made["lr_scheduler"]) == (0.5, "constant")


def test_the_fused_backward_pass_is_adafactors(trainer):
    assert failed(trainer.ask("optimizer", f"{HERE}.Recorder", fused_backward_pass=True), "AssertionError")


def test_train_is_called_once(trainer):
    assert trainer.ask("optimizer", f"{HERE}.Recorder")["trained"] == 1


def test_only_names_that_end_in_schedulefree_change_their_mode(trainer):
    made = trainer.ask("rates", f"{HERE}.RecorderScheduleFree", present=["schedulefree"], lr_scheduler="cosine")
    assert (made["rates"], made["trained"]) == ([1.0] * 5, -100)
    assert made["scheduler"] != "LambdaLR"
    made = trainer.ask("rates", f"{HERE}.Recorder")
    assert (made["trained"], made["scheduler"]) == (1, "LambdaLR")


def test_only_an_optimizer_of_torch_has_a_schedule(trainer):
    assert failed(trainer.ask("rates", f"{HERE}.NotAnOptimizer"), "TypeError", "is not an Optimizer")


@pytest.mark.slow
@pytest.mark.old_layout_too
def test_schedules(trainer):
    def rates(**given):
        return pytest.approx(trainer.ask("rates", **given)["rates"], abs=1e-6)

    assert rates() == [1.0] * 5
    assert rates(lr_scheduler="constant_with_warmup", lr_warmup_steps=2) == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert rates(lr_scheduler="constant_with_warmup", lr_warmup_steps=0.2) == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert rates(lr_scheduler="cosine", max_train_steps=4) == [1.0, 0.853553, 0.5, 0.146447, 0.0]
    assert rates(lr_scheduler="cosine", max_train_steps=2, processes=2) == [1.0, 0.853553, 0.5, 0.146447, 0.0]
    assert rates(lr_scheduler="linear", max_train_steps=4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert failed(trainer.ask("rates", lr_warmup_steps=5), "ValueError")


# 3. --optimizer_args and TOML


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("betas=(0.9,0.99)", {"betas": "(0.9, 0.99)"}),
        ("betas=0.9,0.95", {"betas": "(0.9, 0.95)"}),
        ("betas= (0.9, 0.95)", {"betas": "(0.9, 0.95)"}),
        ("a=[1,2]", {"a": "[1, 2]"}),
        ("a=None", {"a": "None"}),
        ("a=True", {"a": "True"}),
        ("eps=1e-8", {"eps": "1e-08"}),
        ("mode='fp32'", {"mode": "'fp32'"}),
        ("weight_decay=0.5,", {"weight_decay": "(0.5,)"}),
        ("betas =1", {"betas ": "1"}),
    ],
)
def test_arguments_that_are_read(trainer, word, read):
    assert trainer.ask("optimizer", f"{HERE}.Recorder", [word])["options"] == read


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["mode=fp32"], "ValueError"),
        (["flag=true"], "ValueError"),
        (["wd=1/3"], "ValueError"),
        (["a=b=c"], "ValueError"),
        (["weight_decay"], "ValueError"),
        (["lr=1"], "TypeError"),
        ("a=1", "ValueError"),  # a string where TOML should have a list
    ],
)
def test_arguments_that_fail(trainer, words, error):
    assert failed(trainer.ask("optimizer", f"{HERE}.Recorder", words), error)


@pytest.mark.old_layout_too
def test_toml(trainer, tmp_path):
    toml = 'top = 1\n[any]\nlearning_rate = 1\nunknown = "kept"\n[other]\nnetwork_dim = 8\noptimizer_args = ["a=1"]\n'
    read = trainer.ask("config", str(tmp_path), toml, "--network_dim", "4")
    assert (read["top"], read["unknown"], read["network_dim"], read["optimizer_args"]) == (1, "kept", 4, ["a=1"])
    assert read["learning_rate"] == 1
    assert isinstance(read["learning_rate"], int)
    assert failed(trainer.ask("config", str(tmp_path), toml, file="none.toml"), "SystemExit", "1")
    assert failed(trainer.ask("config", str(tmp_path), toml, "--unknown", "1"), "SystemExit", "2")


# 5. The learning rates that are logged


@pytest.mark.old_layout_too
def test_descriptions_are_looked_up_by_position(trainer):
    logs = trainer.ask("logs", [1.0, 2.0], ["textencoder", "unet plus"])
    numbered = {"lr/group1": 2.0} if trainer.release == "0.10" else {}
    assert {tag: value for tag, value in logs.items() if tag.startswith("lr/")} == {
        "lr/textencoder": 1.0, "lr/unet plus": 2.0, **numbered,
    }  # fmt: skip
    assert failed(trainer.ask("logs", [1.0, 2.0, 3.0], ["textencoder", "unet"]), "IndexError")
    assert "lr/unet" not in trainer.ask("logs", [1.0], ["textencoder", "unet"])


@pytest.mark.old_layout_too
@pytest.mark.parametrize(
    ("rates", "unet_only", "tags"),
    [
        ([1.0], True, {"lr/unet": "lr/group0"}),
        ([1.0, 2.0], False, {"lr/textencoder": "lr/textencoder", "lr/unet": "lr/group1"}),
        ([1.0, 2.0, 3.0], True, dict.fromkeys(("lr/group0", "lr/group1", "lr/group2"), "lr/group2")),
    ],
)
def test_names_without_descriptions(trainer, rates, unet_only, tags):
    tags = {*tags, *tags.values()} if trainer.release == "0.10" else {*tags}
    assert set(trainer.ask("logs", rates, None, unet_only=unet_only)) == {"loss/current", "loss/average", *tags}


@pytest.mark.old_layout_too
def test_d_is_logged_for_some_names_and_must_be_there(trainer):
    assert trainer.ask("logs", [2.0], ["unet"], "Prodigy", d=3.0, unet_only=True)["lr/d*lr/unet"] == 6.0
    assert failed(trainer.ask("logs", [2.0], ["unet"], "Prodigy"), "KeyError")
    if trainer.release == "0.10":
        assert trainer.ask("logs", [2.0], ["unet"], "a.ProdigyPlusScheduleFree", d=3.0)["lr/d*lr"] == 6.0
    assert "lr/d*lr/unet" not in trainer.ask("logs", [2.0], ["unet"], "a.Prodigy", d=3.0)


# 6. Parameter groups

LORA = ("lora_down.weight", "lora_up.weight")
TRANSFORMER, ATTENTION = 2 * 6, 2 * 4  # linear layers of the U-Net's two blocks
TEXT = 6


def summary(answer):
    return [(entry["count"], entry["lr"]) for entry in answer["groups"]], answer["descriptions"]


@pytest.mark.parametrize(
    ("module", "kind", "several", "descriptions"),
    [
        ("networks.lora", "sd", False, ["textencoder", "unet"]),
        ("networks.dylora", "sd", False, None),
        ("networks.lora_flux", "flux", True, ["textencoder 1 ", "unet"]),
        ("networks.lokr", "anima", True, ["unet"]),
        ("networks.loha", "anima", True, ["unet"]),
    ],
)
def test_networks_that_pass_the_values_of_a_dict(trainer, module, kind, several, descriptions):
    trainer.needs(module.replace(".", "/") + ".py")
    answer = trainer.ask("groups", module, kind)
    assert (answer["several"], answer["descriptions"]) == (several, descriptions)
    for entry in answer["groups"]:
        assert (entry["keys"], entry["lr"]) == (["lr", "params"], 1e-3)
        if module != "networks.dylora":  # it saves its rows as one matrix
            assert set(entry["names"]) <= set(answer["saved"])


@pytest.mark.parametrize(
    ("module", "counts"), [("networks.lora_fa", [TEXT, TRANSFORMER]), ("networks.oft", [ATTENTION])]
)
def test_networks_that_pass_a_list(trainer, module, counts):
    for rates, keys in (((None, None, 1e-3), ["params"]), ((1e-4, 1e-3, 1e-3), ["lr", "params"])):
        answer = trainer.ask("groups", module, rates=rates)
        assert answer["descriptions"] is None
        assert [entry["keys"] for entry in answer["groups"]] == [keys] * len(answer["groups"])
        assert all(entry["names"] is None for entry in answer["groups"])
        assert [entry["count"] for entry in answer["groups"]] == counts
    assert {name.split("_")[0] for name in answer["saved"]} == {"oft" if module == "networks.oft" else "lora"}


def test_text_encoder_first_and_rates_of_their_own(trainer):
    answer = trainer.ask("groups", "networks.lora", rates=(1e-4, 2e-4, 1e-3))
    assert summary(answer) == ([(2 * TEXT, 1e-4), (2 * TRANSFORMER, 2e-4)], ["textencoder", "unet"])
    assert answer["groups"][0]["names"][:2] == [f"lora_te_layers_0_self_attn_q_proj.{end}" for end in LORA]


def test_a_rate_of_zero_or_none_drops_the_group(trainer):
    assert trainer.ask("groups", "networks.lora", rates=(0.0, None, 1e-3))["descriptions"] == ["unet"]
    assert trainer.ask("groups", "networks.lora", rates=(None, None, None))["groups"] == []
    assert trainer.ask("groups", "lycoris.kohya", rates=(None, None, 0.0), preset="attn-mlp")["groups"] == []


def test_lora_plus(trainer):
    answer = trainer.ask("groups", "networks.lora", loraplus_lr_ratio="16")
    assert answer["descriptions"] == ["textencoder", "textencoder plus", "unet", "unet plus"]
    for entry, said in zip(answer["groups"], answer["descriptions"], strict=True):
        assert entry["lr"] == pytest.approx(16e-3 if "plus" in said else 1e-3)
        assert {name.partition(".")[2] for name in entry["names"]} == {LORA["plus" in said]}
    answer = trainer.ask("groups", "networks.lora", loraplus_unet_lr_ratio="4")
    assert answer["descriptions"] == ["textencoder", "unet", "unet plus"]


@pytest.mark.parametrize(
    ("module", "plus"), [("networks.lokr", "lokr_w1"), ("networks.loha", "hada_w2_a"), ("networks.lora_flux", LORA[1])]
)
def test_lora_plus_of_other_networks(trainer, module, plus):
    trainer.needs(module.replace(".", "/") + ".py")
    answer = trainer.ask("groups", module, "flux" if module == "networks.lora_flux" else "anima", loraplus_lr_ratio="2")
    assert answer["descriptions"][-2:] == ["unet", "unet plus"]
    assert {name.partition(".")[2] for name in answer["groups"][-1]["names"]} == {plus}


def test_blocks(trainer):
    answer = trainer.ask("groups", "networks.lora", down_lr_weight="0,0.5,0.25" + ",1" * 9)
    assert answer["descriptions"] == ["textencoder", "unet_block1", "unet_block2"]
    assert [entry["lr"] for entry in answer["groups"]] == [1e-3, 0.5e-3, 0.25e-3]


def test_regular_expressions_first(trainer):
    args = {"network_reg_lrs": "to_q=0.5,to_k=0", "loraplus_unet_lr_ratio": "2", "train_t5xxl": "True"}
    answer = trainer.ask("groups", "networks.lora_flux", "flux", rates=([1e-4, 2e-4], None, 1e-3), **args)
    assert answer["descriptions"] == [
        "textencoder 1 ", "textencoder 2 ", "unet reg_lr_0", "unet reg_lr_0 plus", "unet", "unet plus",
    ]  # fmt: skip
    assert [entry["lr"] for entry in answer["groups"]] == [1e-4, 2e-4, 0.5, 1.0, 1e-3, 2e-3]


def test_the_branch_knows_sdxl_and_anima_alone(trainer):
    trainer.needs("networks/lokr.py")
    assert failed(trainer.ask("groups", "networks.lokr", "sd"), "ValueError", "architecture")
