"""Profile: the one result type. Whatever is measured or predicted layer by layer is a `Profile`.

A norm is stored as `2 ** (exponent + fraction)` with a whole `exponent`, so that 1e-10000 is as exact as 1. Profiles
are made inside `jit` and `vmap`; they are read and summarised outside, in NumPy float64.

>>> profile = Profile.from_log10([-600.25, -300.5, 0.0], layers=("0 dense", "1 dense", "2 dense"), quantity="norm")
>>> profile.log10_norm
array([-600.25, -300.5 ,    0.  ])
>>> profile.as_float32()  # what a float32 gradient prints
array([0., 0., 1.], dtype=float32)
"""

from dataclasses import dataclass, field
from math import log10

import jax
import numpy as np
from jaxtyping import ArrayLike as Arrays
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

__all__ = ["LOG10_OF_2", "Profile"]

LOG10_OF_2 = log10(2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Profile:
    """The log norm of every layer; leading axes are samples (seeds, examples) if there are any.

    - `exponent`, `fraction`: the norm is `2 ** (exponent + fraction)`. A norm that is exactly zero has the fraction
      minus infinity.
    - `standard_error`: of the log10 norm, in decades; 0 where the value is exact, NaN where one sample cannot tell.
    - `layers`: a name per layer; layer 0 is next to the input.
    - `quantity`: what was measured or predicted.
    """

    exponent: Int[Arrays, "*sample layer"]
    fraction: Float[Arrays, "*sample layer"]
    standard_error: Float[Arrays, "*sample layer"]
    layers: tuple[str, ...] = field(metadata={"static": True})
    quantity: str = field(metadata={"static": True})

    @classmethod
    def from_log10(
        cls, values: ArrayLike, *, layers: tuple[str, ...], quantity: str, standard_error: ArrayLike = 0.0
    ) -> "Profile":
        """Returns the profile with the given log10 norms, `(*sample, layer)`."""
        log2_norm = np.asarray(values, np.float64) / LOG10_OF_2
        if log2_norm.shape[-1:] != (len(layers),):
            raise ValueError(
                f"values have shape {log2_norm.shape} for {len(layers)} layers; accepted is (..., {len(layers)})."
            )
        exponent = np.where(np.isfinite(log2_norm), np.floor(log2_norm), 0)
        error = np.broadcast_to(np.asarray(standard_error, np.float64), log2_norm.shape)
        return cls(exponent.astype(np.int32), log2_norm - exponent, error, tuple(layers), quantity)

    @property
    def log10_norm(self) -> NDArray[np.float64]:
        """The log10 norm per layer, `(*sample, layer)`; minus infinity where the norm is exactly zero."""
        try:
            return (np.asarray(self.exponent, np.float64) + np.asarray(self.fraction, np.float64)) * LOG10_OF_2
        except jax.errors.TracerArrayConversionError:
            raise TypeError(
                "log10_norm was read inside jit or vmap, where numbers are not known yet; "
                "return the Profile and read it outside."
            ) from None

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.layers)

    def as_float32(self) -> NDArray[np.float32]:
        """Returns the norms in float32, where everything below 1e-45 is 0 and everything above 3e38 is infinite."""
        with np.errstate(over="ignore", under="ignore"):
            return np.power(10.0, self.log10_norm).astype(np.float32)

    def mean(self) -> "Profile":
        """Returns the mean of the log10 norms over the first sample axis, with its standard error.

        The mean of the log is the *typical* norm (the geometric mean). A single sample has no standard error: NaN.
        """
        values = self._samples()
        with np.errstate(invalid="ignore"):  # the spread of exact zeros is not a number
            return self._like(values.mean(axis=0), _standard_error(values))

    def root_mean_square(self) -> "Profile":
        """Returns the log10 root mean square over the first sample axis, with its standard error.

        This is the average that mean-field theory predicts; a few large samples may dominate it.
        """
        values = self._samples()
        peak = np.where(np.isfinite(values.max(axis=0)), values.max(axis=0), 0)
        squares = 10 ** (2 * (values - peak))
        mean = squares.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._like(peak + np.log10(mean) / 2, _standard_error(squares) / mean / (2 * np.log(10)))

    def slopes(self, first: int = 0, last: int | None = None) -> NDArray[np.float64]:
        """Returns each sample's slope over layers `first` to `last`, in decades per layer, `(*sample,)`.

        It is that of the least-squares line. Negative: the norm shrinks with the layer index. Raises `ValueError` for
        fewer than two layers and where a norm is exactly zero.
        """
        stop = self.depth if last is None else last + 1
        values = self.log10_norm[..., first:stop]
        if values.shape[-1] < 2:
            raise ValueError(
                f"slope from layer {first} to {stop - 1} of {self.depth} has fewer than two layers to join."
            )
        if not np.isfinite(values).all():
            raise ValueError("slope meets a norm that is exactly zero or not finite; choose first and last around it.")
        index = np.arange(values.shape[-1]) - (values.shape[-1] - 1) / 2
        return np.asarray(values @ index / (index @ index))

    def slope(self, first: int = 0, last: int | None = None) -> tuple[float, float]:
        """Returns the mean of `slopes` and its standard error over samples, NaN if there is only one.

        >>> layers = tuple(f"{i} dense" for i in range(4))
        >>> Profile.from_log10([[-3, -2, -1, 0], [-6, -4, -2, 0]], layers=layers, quantity="norm").slope()
        (1.5, 0.5)
        """
        slopes = self.slopes(first, last).ravel()
        return float(slopes.mean()), float(_standard_error(slopes))

    def layers_to_lose(self, factor: float) -> NDArray[np.float64]:
        """Returns how many layers before the last one the norm has first fallen by `factor`, `(*sample,)`.

        Between two layers the log norm is interpolated. NaN where the norm never falls so far.

        >>> layers = tuple(f"{i} dense" for i in range(4))
        >>> Profile.from_log10([-6, -4, -2, 0], layers=layers, quantity="norm").layers_to_lose(1e3)
        array(1.5)
        """
        if not factor > 1:
            raise ValueError(f"factor={factor!r} is accepted above 1, such as 1e6.")
        lost = self.log10_norm[..., -1:] - self.log10_norm[..., ::-1]
        after = (lost >= log10(factor)).argmax(axis=-1)[..., None]  # 0 where it is never lost: nothing is lost there
        above, below = (np.take_along_axis(lost, index, axis=-1) for index in (np.maximum(after - 1, 0), after))
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.where(np.isinf(below), 0, (below - log10(factor)) / (below - above))  # no line to an exact zero
        return np.where(after == 0, np.nan, after - part)[..., 0]

    def _samples(self) -> NDArray[np.float64]:
        if np.ndim(self.exponent) < 2:
            raise ValueError(
                "this profile holds one sample; averaging needs a leading sample axis, e.g. from jax.vmap over keys."
            )
        return self.log10_norm

    def _like(self, values: NDArray[np.float64], error: NDArray[np.float64]) -> "Profile":
        return Profile.from_log10(values, layers=self.layers, quantity=self.quantity, standard_error=error)


def _standard_error(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """That of the mean over the first axis; NaN for a single sample."""
    if len(values) == 1:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))
