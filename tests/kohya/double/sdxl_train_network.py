"""Double of sd-scripts' sdxl_train_network.py: two text encoders, and train_network is a module, not __main__."""

import library.args as args_util
import train_network


class SdxlNetworkTrainer(train_network.NetworkTrainer):
    kind = "sdxl"


if __name__ == "__main__":
    parser = train_network.setup_parser()
    args = parser.parse_args()
    args_util.verify_command_line_training_args(args)
    SdxlNetworkTrainer().train(args_util.read_config_from_file(args, parser))
