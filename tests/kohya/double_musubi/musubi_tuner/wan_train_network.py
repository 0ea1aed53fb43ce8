"""Double of musubi-tuner's wan_train_network.py: its model by keyword, and a list of predictions."""

import torch

from musubi_tuner import tiny_wan
from musubi_tuner.hv_train_network import NetworkTrainer, read_config_from_file, setup_parser_common


class WanNetworkTrainer(NetworkTrainer):
    architecture = "wan"

    def load_transformer(self, args):
        return tiny_wan.build()

    def call_dit(self, args, accelerator, transformer, latents, batch, noise, noisy_model_input, timesteps):
        with accelerator.autocast():
            predicted = transformer(
                noisy_model_input, t=timesteps, context=batch["t5"], clip_fea=None, seq_len=16, y=None
            )
        return torch.stack(predicted), noise - latents


def main():
    parser = setup_parser_common()
    args = read_config_from_file(parser.parse_args(), parser)
    WanNetworkTrainer().train(args)


if __name__ == "__main__":
    main()
