"""Double of sd-scripts' train_network.py, written from SD_SCRIPTS.md: the order of events that a plugin meets."""

import argparse
import importlib
import json
import logging
import math
import os
import sys
import time
from pathlib import Path

import library.args as args_util
import library.optimizer as optimizer_util
import split_data
import tiny_models
import torch
from accelerate.utils import set_seed
from library import accelerator_setup, checkpoint_io
from library.utils import setup_logging
from step_logs import StepLogs
from validation import Validation

logger = logging.getLogger(__name__)


class NetworkTrainer(StepLogs, Validation):
    kind = "sd"
    generate_step_logs = StepLogs.generate_step_logs  # they are this class's own there
    process_batch = Validation.process_batch

    def load_target_model(self, args):
        encoders, unet = tiny_models.build(self.kind)
        return (encoders if len(encoders) > 1 else encoders[0]), unet

    def is_train_text_encoder(self, args):
        return not args.network_train_unet_only

    def post_process_network(self, args, accelerator, network, text_encoders, unet):
        pass

    def all_reduce_network(self, accelerator, network):
        """Gradients become new tensors, parameter by parameter, since no forward goes through the wrapped network."""
        for trained in (each for each in network.parameters() if each.grad is not None):
            trained.grad = accelerator.reduce(trained.grad, "mean")

    def create_network(self, args, text_encoder, unet):
        sys.path.append(str(Path(__file__).parent))
        module = importlib.import_module(args.network_module)
        net_kwargs = dict(word.split("=", 1) for word in args.network_args or [])
        if args.dim_from_weights:
            return module.create_network_from_weights(1, args.network_weights, None, text_encoder, unet, **net_kwargs)[
                0
            ]
        net_kwargs.setdefault("dropout", args.network_dropout)
        place = (None, text_encoder, unet)
        dim, alpha, drop = args.network_dim, args.network_alpha, args.network_dropout
        return module.create_network(1.0, dim, alpha, *place, neuron_dropout=drop, **net_kwargs)

    def optimizer_params(self, args, network):
        """(groups, descriptions or None). A TypeError from anywhere within is taken for an older signature."""
        several = hasattr(network, "prepare_optimizer_params_with_multiple_te_lrs")
        rate = args.text_encoder_lr
        if not several and isinstance(rate, list):
            rate = rate[0] if rate else None
        try:
            if several:
                prepare = network.prepare_optimizer_params_with_multiple_te_lrs
            else:
                prepare = network.prepare_optimizer_params
            results = prepare(rate, args.unet_lr, args.learning_rate)
            return results[:2] if type(results) is tuple else (results, None)
        except TypeError:
            return network.prepare_optimizer_params(rate, args.unet_lr), None

    def applied_network(self, args, accelerator, text_encoder, unet):
        network = self.create_network(args, text_encoder, unet)
        if network is None:
            return None
        if hasattr(network, "prepare_network"):
            network.prepare_network(args)
        if not hasattr(network, "apply_max_norm_regularization"):
            args.scale_weight_norms = None  # ignored, with a warning there
        self.post_process_network(args, accelerator, network, text_encoder, unet)
        train_unet = not args.network_train_text_encoder_only
        network.apply_to(text_encoder, unet, self.is_train_text_encoder(args), train_unet)
        if args.network_weights is not None:
            logger.info("loaded %s: %s", args.network_weights, network.load_weights(args.network_weights))
        return network

    def train(self, args):  # noqa: PLR0915 (as there: what a plugin meets are the local variables of one function)
        setup_logging(reset=True)
        set_seed(args.seed)
        train_dataset_group, val_dataset_group = split_data.groups(args)
        accelerator = accelerator_setup.prepare_accelerator(args)
        models = text_encoder, unet = self.load_target_model(args)
        network = self.applied_network(args, accelerator, text_encoder, unet)
        if network is None:
            return
        if args.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()
            network.enable_gradient_checkpointing()
        params, lr_descriptions = self.optimizer_params(args, network)
        name, described, optimizer = optimizer_util.get_optimizer(args, params)
        modes = optimizer_util.get_optimizer_train_eval_fn(optimizer, args)
        loader = torch.utils.data.DataLoader(train_dataset_group, shuffle=True)
        val_dataloader = torch.utils.data.DataLoader(val_dataset_group or [])
        lr_scheduler = optimizer_util.get_scheduler_fix(args, optimizer, accelerator.num_processes)
        if args.full_bf16:
            assert args.mixed_precision == "bf16", "full_bf16 needs mixed_precision bf16"
            network.to(torch.bfloat16)
        network, optimizer, lr_scheduler, loader, val_dataloader = accelerator.prepare(
            network, optimizer, lr_scheduler, loader, val_dataloader
        )
        bare = accelerator.unwrap_model(network)
        bare.prepare_grad_etc(text_encoder, unet)
        progress = {"step": 0}
        global_step = progress["step"] = self.resumed_step(args, accelerator, progress)
        save_dtype = torch.float32
        self._metadata = self.metadata(args, f"{name}({described})" if described else name)
        accelerator.init_trackers("network_train")
        self.between_steps(modes)
        losses, validations = [], {"step": [], "epoch": []}
        per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
        num_train_epochs = math.ceil((args.max_train_steps - global_step) / per_epoch)
        for epoch in range(num_train_epochs):
            bare.on_epoch_start(*models)
            for batch in loader:
                loss = self.step(args, accelerator, network, models, (optimizer, lr_scheduler), batch)
                if accelerator.sync_gradients:
                    global_step += 1
                    progress["step"] = global_step
                    self.between_steps(modes)
                losses.append(loss.item())
                if accelerator.trackers:
                    average = sum(losses) / len(losses)
                    logs = self.generate_step_logs(args, losses[-1], average, lr_scheduler, lr_descriptions, optimizer)
                    self.step_logging(accelerator, logs, global_step, epoch + 1)
                every = args.validate_every_n_steps
                if every and accelerator.sync_gradients and global_step % every == 0:
                    self.validate("step", args, accelerator, network, models, modes, val_dataloader, epoch,
                                  global_step, validations)  # fmt: skip
                if global_step >= args.max_train_steps:
                    break
            if (epoch + 1) % (args.validate_every_n_epochs or 1) == 0:
                self.validate("epoch", args, accelerator, network, models, modes, val_dataloader, epoch,
                              global_step, validations)  # fmt: skip
        accelerator.end_training()
        modes[1]()
        if accelerator.is_main_process:
            if args.save_state:
                checkpoint_io.save_state_on_train_end(args, accelerator)
            ckpt_name = f"{args.output_name}.{args.save_model_as}"
            self._save_model(
                args=args, accelerator=accelerator, save_dtype=save_dtype, ckpt_name=ckpt_name, unwrapped_nw=bare,
                steps=global_step, epoch_no=num_train_epochs
            )  # fmt: skip

    def _save_model(self, *, args, accelerator, save_dtype, ckpt_name, unwrapped_nw, steps, epoch_no):
        """Its metadata are the trainer's since 0.11."""
        os.makedirs(args.output_dir, exist_ok=True)
        self._metadata |= {
            "ss_training_finished_at": str(time.time()),
            "ss_steps": str(steps),
            "ss_epoch": str(epoch_no),
        }
        unwrapped_nw.save_weights(os.path.join(args.output_dir, ckpt_name), save_dtype, self._metadata)

    def between_steps(self, modes):
        """Sampling and saving would be here, in evaluation mode."""
        train, evaluate = modes
        evaluate()
        train()

    def step(self, args, accelerator, network, models, prepared, batch):
        """The loss of a batch, and an optimizer step where enough of them were accumulated."""
        optimizer, lr_scheduler = prepared
        bare = accelerator.unwrap_model(network)
        with accelerator.accumulate(network):
            if hasattr(bare, "on_step_start"):
                bare.on_step_start(*models)
            loss = self.process_batch(batch, *models, accelerator, is_train=True)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                self.all_reduce_network(accelerator, network)
                if args.max_grad_norm:
                    accelerator.clip_grad_norm_(bare.get_trainable_params(), args.max_grad_norm)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        if args.scale_weight_norms:
            bare.apply_max_norm_regularization(args.scale_weight_norms, accelerator.device)
        return loss

    def resumed_step(self, args, accelerator, progress):
        """0, or the saved step with --skip_until_initial_step. Without it that many more steps are run."""
        found = {"step": 0}

        def save(models, weights, folder):
            with open(os.path.join(folder, "train_state.json"), "w", encoding="utf-8") as file:
                json.dump({"current_epoch": 1, "current_step": progress["step"]}, file)

        def load(models, folder):
            with open(os.path.join(folder, "train_state.json"), encoding="utf-8") as file:
                found["step"] = json.load(file)["current_step"]

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)
        args_util.resume_from_local_or_hf_if_specified(accelerator, args)
        if found["step"]:
            assert args.max_train_steps > found["step"], "max_train_steps must be more than the saved step"
        return found["step"] if args.skip_until_initial_step else 0

    def metadata(self, args, optimizer):
        values = {
            "ss_optimizer": optimizer,
            "ss_network_module": args.network_module,
            "ss_network_dim": args.network_dim,
            "ss_network_alpha": args.network_alpha,
            "ss_learning_rate": args.learning_rate,
            "ss_unet_lr": args.unet_lr,
            "ss_output_name": args.output_name,
        }
        if args.network_args:
            kwargs = dict(word.split("=", 1) for word in args.network_args)
            values["ss_network_args"] = json.dumps({**kwargs, "dropout": kwargs.get("dropout", args.network_dropout)})
        return {key: str(value) for key, value in values.items()}


FLAGS = """full_bf16 save_state skip_until_initial_step dim_from_weights network_train_unet_only
    network_train_text_encoder_only gradient_checkpointing use_8bit_adam use_lion_optimizer fused_backward_pass"""
TEXTS = """config_file output_dir logging_dir resume network_module network_weights"""
NUMBERS = """unet_lr network_dropout scale_weight_norms"""
COUNTS = """network_dim validate_every_n_steps validate_every_n_epochs validation_seed"""


def int_or_float(text):
    return float(text) if "." in text else int(text)


def setup_parser():
    parser = argparse.ArgumentParser()
    for kind, names in ((str, TEXTS), (float, NUMBERS), (int, COUNTS)):
        for name in names.split():
            parser.add_argument(f"--{name}", type=kind)
    for name in FLAGS.split():
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("optimizer_args", "network_args"):
        parser.add_argument(f"--{name}", nargs="*")
    parser.add_argument("--text_encoder_lr", type=float, nargs="*")
    parser.add_argument("--output_name", default="lora")
    parser.add_argument("--optimizer_type", default="")
    parser.add_argument("--learning_rate", type=float, default=2e-6)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--lr_scheduler", default="constant")
    parser.add_argument("--lr_warmup_steps", type=int_or_float, default=0)
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--validation_split", type=float, default=0.0)
    parser.add_argument("--save_model_as", default="safetensors")
    parser.add_argument("--network_alpha", type=float, default=1)
    return parser


if __name__ == "__main__":
    parser = setup_parser()
    args = parser.parse_args()
    args_util.verify_command_line_training_args(args)
    NetworkTrainer().train(args_util.read_config_from_file(args, parser))
