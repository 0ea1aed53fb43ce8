r"""What a loss needs of an adapter, gathered on somebody's data, in a small file beside it.

With the change of a weight :math:`\Delta W = U C D`, where C is the identity of K columns, one sample's loss has the
gradient :math:`S = U^\top (\partial L / \partial W) D^\top` in C, [K, K]. The loss of a change E of C rises by about
:math:`\tfrac12 E[\langle S, E \rangle^2]` (the empirical Fisher), whose Kronecker approximation is

.. math:: \operatorname{tr}(G E A E^\top),\quad A = E[S^\top S] / E[\|S\|^2],\quad G = E[S S^\top]

(Shampoo's, one power iteration towards the best one: Morwani et al., arXiv:2406.17748). S sums over all positions of a
sample. K-FAC's :math:`E[x x^\top] \otimes E[g g^\top]` takes the positions for independent, and kept less where it was
tried. The best U' and D' of rank k are made of U and D, so K x K matrices are all that is needed. The file has them as
`<module>.down` (A) and `<module>.up` (G).
"""

from pathlib import Path

from torch import Tensor

from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.forms import Product
from hina_kohya.loras.reading import AdapterFile, sha256
from hina_kohya.loras.spectrum import Moments
from hina_kohya.loras.summing import Module, Source

DOWN, UP = "down", "up"
VERSION, ADAPTER, SAMPLES = "hina_metric", "adapter_sha256", "samples"
ENDING = ".metric.safetensors"
# The share of the plain norm in the metric, for directions that the data never used.
RIDGE = 1e-3


def beside(adapter: Path) -> Path:
    """Where the metric of an adapter is kept."""
    return adapter.with_name(adapter.stem + ENDING)


class Metric:
    """A file of `gathering`, of exactly one adapter. Raises AdapterError."""

    def __init__(self, path: Path, sources: tuple[Source, ...]):
        check_sources(sources)
        self._file = AdapterFile(path, strict=False)
        metadata = self._file.metadata
        if metadata.get(VERSION) != "2":
            raise AdapterError(f"{path} is no metric file of version 2; make it with --calibrate RUN.toml")
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
        sums = []
        for side in (DOWN, UP):
            key = f"{module.name}.{side}"
            if self._file.shapes.get(key) != (rank, rank):
                shape = self._file.shapes.get(key, "nothing")
                raise AdapterError(f"{self._file.path}: {key} is {shape} and must be {rank} x {rank}; gather it anew")
            sums.append(self._file.tensor(key).double())
        return blended(product, *sums)


def check_sources(sources: tuple[Source, ...]) -> None:
    """Raises AdapterError for what no metric belongs to."""
    if len(sources) != 1 or sources[0].weight != 1:
        raise AdapterError("--calibrate is about one adapter at weight 1; resize each file, then merge")


def blended(product: Product, down: Tensor, up: Tensor) -> Moments:
    """The metric with `RIDGE` of the plain norm, each at the size of the other."""
    plain_down, plain_up = product.down @ product.down.T, product.up.T @ product.up
    return Moments(_blend(down, plain_down), _blend(up, plain_up))


def _blend(moment: Tensor, plain: Tensor) -> Tensor:
    """`moment` of zeros, of a layer that no data reached, stays zeros."""
    size = plain.trace()
    return moment + RIDGE * moment.trace() / size * plain if float(size) > 0 else moment
