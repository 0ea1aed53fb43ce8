"""Finished runs of this benchmark."""

from benchmarks.campaign import store

from .runs import PROTOCOL, Run


class Store(store.Store):
    kind, protocol = Run, PROTOCOL
