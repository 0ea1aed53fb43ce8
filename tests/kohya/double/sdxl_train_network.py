"""Double of sd-scripts' sdxl_train_network.py: two text encoders, and train_network is a module, not __main__."""

import train_network
from library import train_util


class SdxlNetworkTrainer(train_network.NetworkTrainer):
    kind = "sdxl"


if __name__ == "__main__":
    parser = train_network.setup_parser()
    args = parser.parse_args()
    train_util.verify_command_line_training_args(args)
    SdxlNetworkTrainer().train(train_util.read_config_from_file(args, parser))
