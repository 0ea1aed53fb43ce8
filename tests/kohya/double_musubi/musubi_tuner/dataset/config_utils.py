"""Double of musubi-tuner's dataset/config_utils.py: datasets of cached files; a batch is a dictionary."""

from pathlib import Path
from types import SimpleNamespace

import toml
import torch

from musubi_tuner import tiny_wan


class ConfigSanitizer:
    pass


class BlueprintGenerator:
    def __init__(self, sanitizer):
        self.sanitizer = sanitizer

    def generate(self, user_config, args, architecture):
        return SimpleNamespace(
            dataset_group=[(each["cache_directory"], architecture) for each in user_config["datasets"]]
        )


class ImageDataset(torch.utils.data.Dataset):
    """Of a folder's files; what is in them is random here."""

    def __init__(self, folder, architecture):
        files = sorted(Path(folder).glob(f"*_{architecture}.safetensors"))
        items = [SimpleNamespace(latent_cache_path=str(file)) for file in files]
        self.batch_manager = SimpleNamespace(buckets={(64, 64): items})
        self.content = tiny_wan.Cached(len(files), seed=1)

    def __len__(self):
        return len(self.content)

    def __getitem__(self, number):
        return tiny_wan.collate([self.content[number]])


class DatasetGroup(torch.utils.data.ConcatDataset):
    pass


def load_user_config(file):
    return toml.load(file)


def generate_dataset_group_by_blueprint(blueprint, training=False, num_timestep_buckets=None, shared_epoch=None):
    return DatasetGroup([ImageDataset(*each) for each in blueprint])
