r"""What flows through an adapter on somebody's data, in a small file beside it: the metric in which directions matter.

The loss rises by :math:`\|G^{1/2} (U D - U' D') A^{1/2}\|^2` (K-FAC: Martens and Grosse, arXiv:1503.05671), with
:math:`A = E[x x^\top]` and :math:`G = E[g g^\top]` of the layer. U' and D' are made of U and D, so K x K matrices say
all: :math:`D A D^\top` and :math:`U^\top G U`. The file has them as `<module>.inputs` and `<module>.gradients`.
"""

from pathlib import Path

from torch import Tensor

from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.forms import Product
from hina_kohya.loras.reading import AdapterFile, sha256
from hina_kohya.loras.spectrum import Moments
from hina_kohya.loras.summing import Module, Source

INPUTS, GRADIENTS = "inputs", "gradients"
VERSION, ADAPTER, SAMPLES = "hina_metric", "adapter_sha256", "samples"
# The share of the plain norm in the metric, for directions that the data never used.
RIDGE = 1e-3


class Metric:
    """A file of `gathering`, of exactly one adapter. Raises AdapterError."""

    def __init__(self, path: Path, sources: tuple[Source, ...]):
        if len(sources) != 1 or sources[0].weight != 1:
            raise AdapterError("--metric belongs to one adapter at weight 1; resize each file, then merge")
        self._file = AdapterFile(path, strict=False)
        metadata = self._file.metadata
        if metadata.get(VERSION) != "1":
            raise AdapterError(f"{path} is no metric file of version 1; make it with hina_kohya.loras.gathering")
        if metadata.get(ADAPTER) != sha256(sources[0].path):
            raise AdapterError(f"{path} was gathered for another file than {sources[0].path}; gather it anew")
        self.samples = int(metadata.get(SAMPLES, "0"))

    def moments(self, module: Module) -> Moments | None:
        """None for norms and biases. Raises AdapterError where the file lacks the module."""
        form = module.form()
        if form is None:
            return None
        product = form.product()
        rank = product.up.shape[1]
        found = []
        for kind in (INPUTS, GRADIENTS):
            key = f"{module.name}.{kind}"
            if self._file.shapes.get(key) != (rank, rank):
                shape = self._file.shapes.get(key, "nothing")
                raise AdapterError(f"{self._file.path}: {key} is {shape} and must be {rank} x {rank}; gather it anew")
            found.append(self._file.tensor(key).double())
        return blended(product, *found)


def blended(product: Product, inputs: Tensor, gradients: Tensor) -> Moments:
    """The metric with `RIDGE` of the plain norm, each at the size of the other."""
    plain_inputs, plain_gradients = product.down @ product.down.T, product.up.T @ product.up
    return Moments(_blend(inputs, plain_inputs), _blend(gradients, plain_gradients))


def _blend(moment: Tensor, plain: Tensor) -> Tensor:
    """`moment` of zeros, of a layer that no data reached, stays zeros."""
    size = plain.trace()
    return moment + RIDGE * moment.trace() / size * plain if float(size) > 0 else moment
