"""Double of musubi-tuner's training/trainer_base.py: what a plugin meets there, in the order in which it meets it."""

import ast
import importlib
import json
import logging
import math
import os
import sys
import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file

from musubi_tuner import tiny_wan
from musubi_tuner.dataset import config_utils

logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)


class NetworkTrainer:
    def get_optimizer(self, args, trainable_params):
        """(name for the metadata, its arguments as text, the optimizer, what sets training and evaluation mode)."""
        kind, rate, cls = args.optimizer_type.lower(), args.learning_rate, None
        options = {}
        for word in args.optimizer_args or []:
            key, value = word.split("=")
            options[key] = ast.literal_eval(value)
        if kind.endswith("8bit"):
            try:
                bitsandbytes = importlib.import_module("bitsandbytes")
            except ImportError as error:
                raise ImportError("No bitsandbytes") from error
            cls = bitsandbytes.optim.AdamW8bit if kind == "adamw8bit" else None
        elif kind == "adafactor":
            cls = importlib.import_module("transformers").optimization.Adafactor
            if options.setdefault("relative_step", True):
                args.lr_scheduler, args.learning_rate, rate = f"adafactor:{rate}", None, None
        elif kind == "adamw":
            cls = torch.optim.AdamW
        if cls is None:
            path, _, name = args.optimizer_type.rpartition(".")
            cls = getattr(importlib.import_module(path) if path else torch.optim, name)
        optimizer = cls(trainable_params, lr=rate, **options)
        modes = (lambda: None, lambda: None)
        if callable(getattr(optimizer, "train", None)):
            modes = (optimizer.train, optimizer.eval)
        described = ",".join(f"{key}={value}" for key, value in options.items())
        return f"{cls.__module__}.{cls.__name__}", described, optimizer, *modes

    def is_schedulefree_optimizer(self, optimizer, args):
        return args.optimizer_type.lower().endswith("schedulefree")

    def get_lr_scheduler(self, args, optimizer, num_processes):
        """constant, constant_with_warmup and cosine."""
        if self.is_schedulefree_optimizer(optimizer, args):
            return _NoSchedule(optimizer)
        name, total, warmup = args.lr_scheduler, args.max_train_steps * num_processes, args.lr_warmup_steps
        warmup = int(warmup * total) if isinstance(warmup, float) else warmup
        if name == "constant" and warmup:
            raise ValueError(f"{name} does not require `num_warmup_steps`. Set None or 0.")
        shapes = {"cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done))}

        def factor(step):
            if step < warmup:
                return step / max(1, warmup)
            return shapes.get(name, lambda done: 1.0)((step - warmup) / max(1, total - warmup))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def generate_step_logs(self, args, current_loss, avr_loss, lr_scheduler, lr_descriptions, optimizer=None):
        """Every rate once: by description, or by place."""
        logs = dict(zip(("loss/current", "loss/average"), (current_loss, avr_loss), strict=True))
        rates = lr_scheduler.get_last_lr()
        for i, rate in enumerate(rates):
            name = f"group{i}" if len(rates) > 2 else "unet"
            logs[f"lr/{name if lr_descriptions is None else lr_descriptions[i]}"] = rate
        return logs

    def get_noisy_model_input_and_timesteps(self, args, noise, latents, timesteps, noise_scheduler, device, dtype):
        """Timesteps run from 1 to 1001, noise is mixed in by (timestep - 1) / 1000."""
        drawn = torch.randn(len(latents)) if timesteps is None else torch.special.ndtri(torch.tensor(timesteps))
        share = drawn.sigmoid()
        share = share * args.discrete_flow_shift / (1 + (args.discrete_flow_shift - 1) * share)
        t = share.view(-1, *[1] * (latents.ndim - 1))
        return (1 - t) * latents + t * noise, share * 1000.0 + 1

    def load_transformer(self, args):
        raise NotImplementedError

    def call_dit(self, args, accelerator, transformer, latents, batch, noise, noisy_model_input, timesteps):
        raise NotImplementedError

    def convert_weight_keys(self, weights_sd, network_module):
        return weights_sd

    def train(self, args):
        if args.dataset_config is None:
            raise ValueError("dataset_config is required")
        set_seed(args.seed)
        train_dataset_group = self._build_dataset(args)  # noqa: F841 (it is what is read off the frame)
        accelerator = Accelerator(
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with="tensorboard" if args.logging_dir else None,
            project_dir=args.logging_dir,
        )
        transformer = self.load_transformer(args).eval().requires_grad_(False)
        network = self._build_network(args, accelerator, transformer)
        if network is None:
            return
        groups, lr_descriptions = network.prepare_optimizer_params(unet_lr=args.learning_rate)
        name, described, optimizer, train_fn, eval_fn = self.get_optimizer(args, groups)
        loader = torch.utils.data.DataLoader(tiny_wan.Cached(), batch_size=1, shuffle=True, collate_fn=tiny_wan.collate)
        lr_scheduler = self.get_lr_scheduler(args, optimizer, accelerator.num_processes)
        transformer = accelerator.prepare(transformer)
        network, optimizer, loader, lr_scheduler = accelerator.prepare(network, optimizer, loader, lr_scheduler)
        transformer.train(args.gradient_checkpointing)
        bare = accelerator.unwrap_model(network)
        bare.prepare_grad_etc(transformer)
        self._resume(args, accelerator, bare)
        accelerator.init_trackers("network_train")
        train_fn()
        metadata = self._metadata(args, f"{name}({described})" if described else name)
        self._run_training_loop(
            args, accelerator, transformer, network, optimizer, lr_scheduler, lr_descriptions, loader, eval_fn, metadata
        )

    def _build_dataset(self, args):
        """A file that is not there is taken for an empty one, unlike there."""
        config = config_utils.load_user_config(args.dataset_config) if os.path.exists(args.dataset_config) else {}
        blueprint = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer()).generate(
            {"datasets": [{"cache_directory": "nowhere"}], **config}, args, architecture=self.architecture
        )
        return config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group, training=True)

    def _build_network(self, args, accelerator, transformer):
        sys.path.append(os.path.dirname(os.path.dirname(__file__)))  # so that networks.lora_wan can be imported
        module = importlib.import_module(args.network_module)
        for path in args.base_weights or []:
            weights = self.convert_weight_keys(load_file(path), module)
            merged = module.create_arch_network_from_weights(1.0, weights, unet=transformer, for_inference=True)
            merged.merge_to(None, transformer, weights, torch.float32, "cpu")
            accelerator.print(f"all weights merged: {path}")
        net_kwargs = dict(word.split("=") for word in args.network_args or [])
        if args.dim_from_weights:
            weights = load_file(args.dim_from_weights)  # of a switch: this never worked
            network, _ = module.create_arch_network_from_weights(1, weights, unet=transformer)
        elif hasattr(module, "create_arch_network"):
            network = module.create_arch_network(
                1.0, args.network_dim, args.network_alpha, None, None, transformer,
                neuron_dropout=args.network_dropout, **net_kwargs,
            )  # fmt: skip
        else:
            network = module.create_network(
                1.0, args.network_dim, args.network_alpha, None, None, transformer, **net_kwargs
            )
        if network is None:
            return None
        if hasattr(module, "prepare_network"):
            network.prepare_network(args)
        network.apply_to(None, transformer, apply_text_encoder=False, apply_unet=True)
        if args.network_weights is not None:
            accelerator.print(f"load network weights: {network.load_weights(args.network_weights)}")
        if args.gradient_checkpointing:
            transformer.enable_gradient_checkpointing(False)
            network.enable_gradient_checkpointing()
        return network

    def _resume(self, args, accelerator, network):
        """States hold the network and no other model; steps are counted from 0 again."""

        def save(models, weights, folder):
            for place in reversed([i for i, model in enumerate(models) if not isinstance(model, type(network))]):
                if len(weights) > place:
                    weights.pop(place)

        def load(models, folder):
            models[:] = [model for model in models if isinstance(model, type(network))]

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)
        if args.resume:
            accelerator.load_state(args.resume)

    def _run_training_loop(
        self,
        args,
        accelerator,
        transformer,
        network,
        optimizer,
        lr_scheduler,
        lr_descriptions,
        loader,
        eval_fn,
        metadata,
    ):
        global_step, losses, bare = 0, [], accelerator.unwrap_model(network)
        noise_scheduler, vae, dit_dtype, network_dtype = None, None, torch.float32, torch.float32
        num_train_epochs = math.ceil(args.max_train_steps / math.ceil(len(loader) / args.gradient_accumulation_steps))

        def save_model(ckpt_name, unwrapped_nw, steps, epoch_no):
            metadata.update(ss_steps=str(steps), ss_epoch=str(epoch_no), ss_training_finished_at=str(time.time()))
            unwrapped_nw.save_weights(os.path.join(args.output_dir, ckpt_name), torch.float32, metadata)

        for epoch in range(num_train_epochs):  # noqa: B007 (as above)
            bare.on_epoch_start(transformer)
            for batch in loader:
                latents = self.scale_shift_latents(batch["latents"])
                with accelerator.accumulate(network):
                    bare.on_step_start()
                    noise = torch.randn_like(latents)
                    loss, _ = self.process_batch(
                        args, accelerator, transformer, network, batch, latents, noise, noise_scheduler, dit_dtype,
                        network_dtype, vae, global_step,
                    )  # fmt: skip
                    accelerator.backward(loss)
                    if accelerator.sync_gradients and args.max_grad_norm:
                        accelerator.clip_grad_norm_(bare.get_trainable_params(), args.max_grad_norm)
                    optimizer.step()
                    lr_scheduler.step()
                    optimizer.zero_grad(set_to_none=True)
                    self.on_post_optimizer_step(
                        args, accelerator, network, transformer, accelerator.sync_gradients, global_step
                    )
                if args.scale_weight_norms:
                    bare.apply_max_norm_regularization(args.scale_weight_norms, accelerator.device)
                global_step += accelerator.sync_gradients
                losses.append(loss.item())
                average = sum(losses) / len(losses)
                logs = self.generate_step_logs(args, losses[-1], average, lr_scheduler, lr_descriptions, optimizer)
                accelerator.log(logs, step=global_step)
                if global_step >= args.max_train_steps:
                    break
        accelerator.end_training()
        eval_fn()
        if args.save_state:
            accelerator.save_state(os.path.join(args.output_dir, f"{args.output_name}-state"))
        save_model(f"{args.output_name}.safetensors", bare, global_step, num_train_epochs)

    def on_post_optimizer_step(self, args, accelerator, network, transformer, sync_gradients, global_step):
        """For those who inherit."""

    def scale_shift_latents(self, latents):
        return latents

    def process_batch(
        self, args, accelerator, transformer, network, batch, latents, noise, noise_scheduler, dit_dtype,
        network_dtype, vae, global_step,
    ):  # fmt: skip
        """(loss, what else is logged)"""
        noisy, timesteps = self.get_noisy_model_input_and_timesteps(
            args, noise, latents, batch["timesteps"], noise_scheduler, accelerator.device, dit_dtype
        )
        predicted, target = self.call_dit(args, accelerator, transformer, latents, batch, noise, noisy, timesteps)
        return torch.nn.functional.mse_loss(predicted, target), {}

    def _metadata(self, args, optimizer):
        values = {
            "ss_optimizer": optimizer,
            "ss_network_module": args.network_module,
            "ss_network_dim": args.network_dim,
            "ss_network_alpha": args.network_alpha,
            "ss_learning_rate": args.learning_rate,
            "ss_output_name": args.output_name,
        }
        if args.network_args:
            values["ss_network_args"] = json.dumps(dict(word.split("=") for word in args.network_args))
        return {key: str(value) for key, value in values.items()}


class _NoSchedule:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        """There is none to take."""

    def get_last_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]
