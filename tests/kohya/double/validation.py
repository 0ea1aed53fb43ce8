"""What train_network.py does of validation: fixed timesteps and noise, and an average that mixes the first epoch's."""

import torch

TIMESTEPS = (200, 400, 600, 800)


class Validation:
    def process_batch(self, batch, text_encoder, unet, accelerator, timestep=None, is_train=True):
        """The loss of a batch, at random timesteps in training."""
        latents, tokens = batch
        encoders = text_encoder if isinstance(text_encoder, list) else [text_encoder]
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),))
        timesteps = timesteps if timestep is None else torch.full_like(timesteps, timestep)
        noisy = latents + timesteps[:, None, None, None] / 1000 * noise
        with torch.set_grad_enabled(is_train), accelerator.autocast():
            text = sum(encoder(tokens) for encoder in encoders)
            predicted = unet(noisy, timesteps, text)
        return torch.nn.functional.mse_loss(predicted.float(), noise)

    def validate(self, kind, args, accelerator, network, models, modes, loader, epoch, global_step, validations):
        if not len(loader):
            return
        train, evaluate = modes
        evaluate()
        accelerator.unwrap_model(network).eval()
        state = torch.get_rng_state()
        torch.manual_seed(args.seed if args.validation_seed is None else args.validation_seed)
        for dataset in loader.dataset.datasets:
            dataset.set_current_epoch(epoch + 1)  # as the workers of a data loader do there
        losses = validations[kind]
        if epoch:
            losses.clear()
        for batch in loader:
            for timestep in TIMESTEPS:
                loss = self.process_batch(batch, *models, accelerator, timestep=timestep, is_train=False)
                losses.append(loss.item())
        if accelerator.trackers:
            logs = {f"loss/validation/{kind}_average": sum(losses) / len(losses)}
            self.step_logging(accelerator, logs, global_step if kind == "step" else epoch + 1, epoch + 1)
        torch.set_rng_state(state)
        train()
        accelerator.unwrap_model(network).train()

    def step_logging(self, accelerator, logs, global_step, epoch):
        accelerator.log(logs, step=global_step)
