"""The figures show the numbers they are given, in colours that every reader can tell apart."""

from itertools import combinations

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from gradcourse import plots
from gradcourse.measure.jacobians import log_gain_split
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.network import mlp
from gradcourse.plots import figures, style
from gradcourse.profile import Profile
from gradcourse.training.sweeps import over_seeds

LAYERS = tuple(f"{layer} dense" for layer in range(4))
MAIN = ("sigmoid", "tanh", "relu")

# Linear-light simulation of full colour blindness of each kind: Machado, Oliveira & Fernandes 2009, severity 1.
MACHADO = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    value = np.array(to_rgb(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast_on_white(colour: str) -> float:
    return 1.05 / (linear(colour) @ [0.2126, 0.7152, 0.0722] + 0.05)


def lab(light: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(
        light, 0, 1
    )
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def profile(*rows: list[float]) -> Profile:
    return Profile.from_log10(np.array(rows if len(rows) > 1 else rows[0]), layers=LAYERS, quantity="norm")


def drawn(figure: plots.Figure, label: str) -> np.ndarray:
    return next(line.get_ydata() for line in figure.axes[0].lines if line.get_label() == label)


def test_every_activation_has_a_look_of_its_own() -> None:
    assert set(plots.LOOK) == set(ACTIVATIONS)
    assert len(set(plots.LOOK.values())) == len(plots.LOOK)
    assert len({marker for _, marker in plots.LOOK.values()}) == len(plots.LOOK)


@pytest.mark.parametrize("colour", [colour for colour, _ in plots.LOOK.values()] + [style.INK, style.MUTED])
def test_colours_stand_out_from_paper(colour: str) -> None:
    assert contrast_on_white(colour) >= 3


def test_text_has_the_contrast_of_text() -> None:
    for key in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"):
        assert contrast_on_white(plots.STYLE[key]) >= 4.5
    assert contrast_on_white(style.MUTED) >= 4.5


@pytest.mark.parametrize("kind", MACHADO)
def test_the_main_activations_are_told_apart_by_the_colour_blind(kind: str) -> None:
    seen = {name: lab(np.array(MACHADO[kind]) @ linear(plots.LOOK[name][0])) for name in MAIN}
    for one, other in combinations(MAIN, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


def test_a_profile_is_drawn_as_its_numbers() -> None:
    figure = plots.profiles(
        {"sigmoid": profile([-3.0, -2.0, -1.0, 0.0])}, {"sigmoid": profile([-3.5, -2.5, -1.0, 0.0])}
    )
    np.testing.assert_allclose(drawn(figure, "sigmoid"), [-3, -2, -1, 0], atol=1e-12)
    assert any(
        np.allclose(line.get_ydata(), [-3.5, -2.5, -1, 0]) for line in figure.axes[0].lines if len(line.get_ydata())
    )


def test_seeds_are_drawn_as_mean_and_full_range() -> None:
    figure = plots.profiles(profile([-4.0, -2.0, -1.0, 0.0], [-2.0, -1.0, 0.0, 1.0]))
    np.testing.assert_allclose(drawn(figure, "measured"), [-3, -1.5, -0.5, 0.5])
    corners = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == (-4, 1)


def test_a_second_network_of_the_same_activation_is_drawn_hollow() -> None:
    figure = plots.profiles({"relu, dense": profile([0.0] * 4), "relu, conv": profile([1.0] * 4)})
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["relu, dense"].get_color() == lines["relu, conv"].get_color()
    assert lines["relu, conv"].get_markerfacecolor() == "white"


def test_levels_are_drawn_where_they_are_and_named() -> None:
    (axes,) = plots.profiles({"tanh": profile([-3.0, -2.0, -1.0, 0.0])}, float32=True, levels={"float16": -7.5}).axes
    heights = [line.get_ydata()[0] for line in axes.lines[-3:]]
    assert heights == [figures.FLOAT32_NORMAL, figures.FLOAT32_LAST, -7.5]
    names = {text.get_text(): text.get_ha() for text in axes.texts}
    assert names == {"float32 loses digits below": "right", "float32 is 0 below": "right", "float16": "left"}


def test_curves_draw_points_lines_and_marks() -> None:
    figure = plots.curves(
        np.array([1.0, 2.0]), {"tanh": np.array([3.0, 4.0])}, {"tanh": np.array([5.0, 6.0, 7.0])},
        x_predicted=np.array([1.0, 1.5, 2.0]),
        xlabel="x", ylabel="y", log="xy", mark={"here": 1.5},
    )  # fmt: skip
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    np.testing.assert_allclose(drawn(figure, "tanh"), [3, 4])
    assert any(np.allclose(line.get_xdata(), 1.5) for line in axes.lines if len(line.get_xdata()) == 2)


def test_a_legend_beside_the_curves_covers_none_of_them() -> None:
    for beside in (False, True):
        figure = plots.curves(
            np.arange(3), {"tanh": np.ones(3)}, {"tanh": np.ones(3)}, xlabel="x", ylabel="y", beside=beside
        )
        figure.draw_without_rendering()
        (axes,) = figure.axes
        assert (axes.get_legend().get_window_extent().x0 > axes.get_window_extent().x1) == beside


def test_slopes_show_function_derivative_and_bound() -> None:
    figure = plots.slopes(["sigmoid"])
    assert figure.axes[1].lines[0].get_ydata().max() == pytest.approx(0.25)
    assert figure.axes[1].lines[1].get_ydata()[0] == 0.25


def test_gain_split_draws_three_series_per_network() -> None:
    network = mlp(4, [5, 5], 3)
    split = over_seeds(log_gain_split, network, jnp.ones((2, 4)), seeds=3, key=jax.random.key(0))
    figure = plots.gain_split({"sigmoid": split}, {"sigmoid": (-0.24, -0.61)})
    np.testing.assert_allclose(drawn(figure, "both together"), split.total.log10_norm.mean(axis=0))
    assert [label for label in (line.get_label() for line in figure.axes[0].lines) if not label.startswith("_")] == [
        "weights",
        "activation",
        "both together",
    ]


def test_a_notebook_shows_a_sharp_picture_at_half_its_pixels() -> None:
    data, shown = plots.images(np.zeros((2, 8, 8, 1)), [0, 1])._repr_png_()
    assert data.startswith(b"\x89PNG")
    width = int.from_bytes(data[16:20], "big")
    assert abs(width - 2 * shown["width"]) <= 2


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    plots.slopes(["relu"])
    assert dict(mpl.rcParams) == before


def test_costs_show_every_way_and_leave_out_what_compiles_nothing() -> None:
    points = [
        {"way": way, "depth": depth, "run": depth / 10, "compile": compiled}
        for way, compiled in (("scanned", 0.5), ("eager", 0.0))
        for depth in (2, 8)
    ]
    figure = plots.costs(points)
    np.testing.assert_allclose(drawn(figure, "scanned"), [0.2, 0.8])
    np.testing.assert_allclose(drawn(figure, "eager"), [0.2, 0.8])
    by_label = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_allclose(by_label["scanned"], 0.5)
    assert len(by_label["eager"]) == 0


def test_layers_over_steps_draws_every_layer_with_the_band_of_its_seeds() -> None:
    values = np.random.default_rng(0).normal(size=(5, 4, 3))  # seed, snapshot, layer
    figure = plots.layers_over_steps(np.arange(0, 40, 10), values, ylabel="norm", layers=("first", "second", "third"))
    for layer, name in enumerate(("first", "second", "third")):
        np.testing.assert_allclose(drawn(figure, name), values[:, :, layer].mean(axis=0))
        low, high = (part(values[:, :, layer], axis=0) for part in (np.min, np.max))
        band = figure.axes[0].collections[layer].get_paths()[0].vertices
        assert band[:, 1].min() == pytest.approx(low.min())
        assert band[:, 1].max() == pytest.approx(high.max())
    lines = figure.axes[0].lines
    assert len({line.get_marker() for line in lines}) == 3
    assert all(contrast_on_white(to_hex(line.get_color())) > 3 for line in lines)


def test_layers_are_marked_at_whole_numbers_and_anything_else_is_not() -> None:
    def ticks(x: np.ndarray) -> np.ndarray:
        return plots.curves(x, {"tanh": np.zeros(3)}, xlabel="x", ylabel="y").axes[0].get_xticks()

    assert (ticks(np.arange(3)) % 1 == 0).all()
    assert (ticks(np.arange(3.0)) % 1 != 0).any()


def test_a_heat_map_says_every_number_in_its_cell() -> None:
    values = np.array([[1.0, 2.0, 3.0], [4.0, np.inf, 6.0]])
    figure = plots.heat_map(
        values, [0.1, 1, 10], [2, 4], xlabel="rate", ylabel="layers", quantity="loss", missing="diverged"
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.0", "2.0", "3.0", "4.0", "diverged", "6.0"]
    assert [text.get_position() for text in axes.texts[:4]] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "4"]
    (image,) = axes.images
    assert image.origin == "lower"
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.inf), values)
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert colours["1.0"] == "white"
    assert colours["6.0"] == style.INK


def test_a_heat_map_draws_its_frontier_between_the_rows_it_lies_between() -> None:
    frontier = [15.0, 1.0, 1e6, np.inf]
    figure = plots.heat_map(
        np.ones((3, 4)), range(4), [10, 20, 40], xlabel="x", ylabel="y", quantity="z", frontier=frontier
    )
    lines = figure.axes[0].lines
    assert [tuple(line.get_xdata()) for line in lines] == [(c - 0.5, c + 0.5) for c in range(4)]
    np.testing.assert_allclose([line.get_ydata()[0] for line in lines], [0.5, -0.46, 2.46, 2.46])
