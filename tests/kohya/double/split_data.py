"""What sd-scripts splits its images into: dataset groups with `image_data`, whose order changes with the epoch."""

import math
import random

import tiny_models
import torch


class Dataset(torch.utils.data.Dataset):
    def __init__(self, places, validation_seed):
        self.data, self.places, self.validation_seed = tiny_models.random_data(), places, validation_seed
        self.image_data, self.order, self.current_epoch = dict.fromkeys(places), list(places), 0

    def set_current_epoch(self, epoch):
        if epoch > self.current_epoch:
            self.current_epoch = epoch
            self.shuffle_buckets()

    def shuffle_buckets(self):
        random.Random(self.current_epoch).shuffle(self.order)

    def __getitem__(self, number):
        return self.data[self.order[number]]

    def __len__(self):
        return len(self.order)


class DatasetGroup(torch.utils.data.ConcatDataset):
    def __init__(self, datasets):
        super().__init__(datasets)
        self.image_data = {key: None for each in datasets for key in each.image_data}


def groups(args):
    """(of training, held out or None)"""
    places = range(len(tiny_models.random_data()))
    if not args.validation_split:
        return DatasetGroup([Dataset(list(places), None)]), None
    parts = [split(list(places), is_training, args) for is_training in (True, False)]
    training, held_out = (DatasetGroup([Dataset(part, args.validation_seed)]) if part else None for part in parts)
    return training, held_out


def split(places, is_training, args):
    """Each part shuffles by itself; without a seed of its own not as the other one."""
    chance = random if args.validation_seed is None else random.Random(args.validation_seed)
    chance.shuffle(places)
    count, share = len(places), args.validation_split
    if is_training:
        return places[: math.ceil(count * (1 - share))]
    return places[count - round(count * share) :]
