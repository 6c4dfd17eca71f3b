"""`gradcourse profile`: a random dense network measured on images of digits, next to what theory predicts."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from gradcourse._checks import known_name, positive_integer
from gradcourse.cli.shared import check_picture, print_json, write_picture
from gradcourse.course.intervals import estimate, interval
from gradcourse.measure import gradients, jacobians
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.initializers import INITIALIZERS
from gradcourse.nn.network import mlp
from gradcourse.profile import Profile
from gradcourse.tables import Table
from gradcourse.theory import meanfield
from gradcourse.training.data import digits
from gradcourse.training.sweeps import over_seeds

__all__ = ["Comparison", "compare", "profile"]

SHORT_NAMES = {"glorot": "glorot_uniform", "he": "he_normal", "lecun": "lecun_normal"}
QUANTITIES = {
    "backward": "log10 norm of the Jacobian of the output with respect to each layer's input",
    "forward": "log10 norm of the Jacobian of each layer's output with respect to the input",
    "layer": "log10 norm of the Jacobian of each layer's output with respect to its own input",
    "gradient": "log10 norm of the gradient of one example's loss with respect to each layer's input",
}
EXAMPLES, CLASSES = 50, 10
ROWS, COLUMNS = 21, 41  # of the picture in a terminal


def profile(options: Any) -> int:
    """Prints the comparison that the options ask for, as a picture in text or as JSON."""
    check_picture(options.picture)
    names = ("depth", "width", "activation", "init", "seeds", "quantity")
    found = compare(**{name: getattr(options, name) for name in names})
    print_json(found.to_dict()) if options.json else print(found)
    if options.picture is not None:
        write_picture(found.plot(), options.picture)
    return 0


def compare(*, depth: int, width: int, activation: str, init: str, seeds: int, quantity: str) -> "Comparison":
    """Returns the profiles of a network of `depth` layers on 50 digits, for `seeds` random draws, and the prediction.

    `init` may be one of `SHORT_NAMES`, and `quantity` is one of `QUANTITIES`. Raises `ValueError` for anything else.
    """
    known_name("quantity", quantity, QUANTITIES)
    known_name("activation", activation, ACTIVATIONS)
    init = SHORT_NAMES.get(init, known_name("init", init, (*INITIALIZERS, *SHORT_NAMES)))
    if positive_integer("depth", depth) < 2:
        raise ValueError(f"depth={depth} is accepted from 2 up: a layer and the readout.")
    x, y, *_ = digits()
    x, y = x[:EXAMPLES], y[:EXAMPLES]
    widths = [positive_integer("width", width)] * (depth - 1)
    network = mlp(x.shape[1], widths, CLASSES, activation=activation, init=init)
    measure: Any = partial(gradients.activation_gradient_norms, y=y)
    predicted = None
    if quantity != "gradient":
        measure, predict = (getattr(module, f"{quantity}_jacobian_norms") for module in (jacobians, meanfield))
        predicted = predict(network, x)
    measured = over_seeds(measure, network, x, seeds=positive_integer("seeds", seeds), key=jax.random.key(0))
    return Comparison(width, activation, init, quantity, measured, predicted)


@dataclass(frozen=True)
class Comparison:
    """What was measured, one sample per seed, and what was predicted, if theory predicts such a thing."""

    width: int
    activation: str
    init: str
    quantity: str
    measured: Profile
    predicted: Profile | None

    @cached_property
    def slope(self) -> tuple[float, float, float] | None:
        """Decades per layer, with the ends of the 95 % interval; `None` where a norm is zero or not finite."""
        return interval(self.measured.slopes()) if np.isfinite(self.measured.log10_norm).all() else None

    @property
    def layers_per_decade(self) -> float | None:
        """The layers, on the signal's way, in which a factor of ten is lost; negative where it is gained.

        `None` where the slope, to the digits that are shown, may be zero.
        """
        if self.slope is None or round(self.slope[1], 3) <= 0 <= round(self.slope[2], 3):
            return None
        return (-1 if self.quantity == "forward" else 1) / self.slope[0]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything, layer by layer, for JSON."""
        values, depth, predicted = self.measured.log10_norm, self.measured.depth, self.predicted
        found: dict[str, Any] = {
            "network": {"depth": depth, "width": self.width, "activation": self.activation, "init": self.init},
            "seeds": len(values),
            "quantity": QUANTITIES[self.quantity],
            "layers": self.measured.layers,
            "predicted": None if predicted is None else predicted.log10_norm,
            "measured": values.mean(axis=0),
            "interval": [interval(column)[1:] for column in values.T] if self.slope else [None] * depth,
            "slope": None,
        }
        if self.slope is not None:
            found["slope"] = {"decades_per_layer": self.slope[0], "interval": self.slope[1:]}
            if predicted is not None:
                found["slope"]["predicted"] = predicted.slope()[0]
        if self.layers_per_decade is not None:
            found["layers_to_lose_a_factor_of_ten"] = self.layers_per_decade
        return found

    def plot(self) -> Any:
        """Returns the figure."""
        from gradcourse.plots import profiles

        label = f"{self.activation}, {self.init}"
        predicted = None if self.predicted is None else {label: self.predicted}
        return profiles({label: self.measured}, predicted, title=f"{self.measured.depth} layers of {self.width}")

    def __str__(self) -> str:
        """A table with a picture: a line per layer, of many layers some, and the slope in words."""
        seeds, layers = len(self.measured.log10_norm), f"{self.measured.depth} layers of {self.width}"
        setting = f"{layers}, {self.activation}, {self.init}; {seeds} seed{'s' * (seeds > 1)}, {EXAMPLES} digits"
        return "\n".join([setting, QUANTITIES[self.quantity], "", *self._picture(), "", *self._slope_in_words()])

    def _picture(self) -> list[str]:
        values, names = self.measured.log10_norm, self.measured.layers
        shown = np.unique(np.linspace(0, len(names) - 1, min(len(names), ROWS)).round().astype(int))
        columns, legend = {"layer": [names[layer] for layer in shown]}, "o measured"
        drawn = {"o": values.mean(axis=0)}
        if self.predicted is not None:
            columns["predicted"] = [f"{norm:z.2f}" for norm in self.predicted.log10_norm[shown]]
            legend += ", | predicted by mean-field theory where it is elsewhere"
            drawn = {"|": self.predicted.log10_norm} | drawn
        columns["measured [95 %]" if len(values) > 1 else "measured"] = [
            estimate(one, "z.2f") if np.isfinite(one).all() else f"{one[0]}" for one in values.T[shown]
        ]
        scale, lines = _lines(drawn, shown)
        if left_out := len(names) - len(shown):
            legend += f"; {left_out} layers between these are not shown"
        return [*repr(Table.from_columns(columns | {scale: lines})).splitlines(), f"({legend})"]

    def _slope_in_words(self) -> list[str]:
        if self.slope is None:
            return ["no slope: the norm is exactly zero, or not finite, at some layer"]
        line = f"slope {estimate(self.measured.slopes(), '+.3f')} decades per layer"
        if self.predicted is not None:
            line += f" (predicted {self.predicted.slope()[0]:+.3f})"
        layers = self.layers_per_decade
        if layers is None or self.quantity == "layer":
            return [line]
        way = "on the way forward" if self.quantity == "forward" else "on the way back"
        return [line, f"a factor of ten is {'lost' if layers > 0 else 'gained'} every {abs(layers):.3g} layers {way}"]


def _lines(drawn: dict[str, np.ndarray], shown: np.ndarray) -> tuple[str, list[str]]:
    """The scale, and a line per layer shown that has each sign where its norm lies; later signs cover earlier ones."""
    norms = np.stack([*drawn.values()])
    known = norms[np.isfinite(norms)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    width = max(high - low, 0.1)  # what is next to nothing is not drawn as if it were something
    lines = np.full((len(shown), COLUMNS), " ")
    for sign, values in drawn.items():
        for line, value in zip(lines, values[shown], strict=True):
            if np.isfinite(value):
                line[round((value - low) / width * (COLUMNS - 1))] = sign
    return f"{low:z.1f}".ljust(COLUMNS - len(f"{high:z.1f}")) + f"{high:z.1f}", ["".join(line) for line in lines]
