"""What the description of Shapeset-3x2 says, measured on drawn scenes; pixels against a plain point-in-polygon test."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import stats

from gradcourse.training.shapeset import CLASSES, Scene, Shapeset, draw_scene

TRIANGLE, PARALLELOGRAM, ELLIPSE = range(3)
CORNERS = np.array([3, 4, 20])


class Drawn(NamedTuple):
    scene: Scene
    corners: np.ndarray
    overlap: np.ndarray
    label: np.ndarray
    image: np.ndarray


def measured(scene: Scene) -> Drawn:
    return Drawn(scene, scene.corners(), scene.overlap(), scene.label(), scene.image())


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    keys = jax.random.split(jax.random.key(0), 6000)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: measured(draw_scene(key=key))))(keys))


@pytest.fixture(scope="module")
def objects(drawn: Drawn) -> Scene:
    """The objects of images with one, the unseen second too: nothing was rejected there. Both in one axis."""
    alone = ~drawn.scene.two
    return Scene(*(part[alone].reshape(-1, *part.shape[2:]) for part in drawn.scene[:3]), *drawn.scene[3:])


def scene(kinds: tuple[int, int], two: bool = True) -> Scene:
    """A circle-like large object in the middle, and a small one in the middle of that."""
    matrices = jnp.stack([20 * jnp.eye(2), 8 * jnp.eye(2)])
    greys = jnp.array([0.0, 255.0, 51.0])
    return Scene(jnp.array(kinds), matrices, jnp.array([[16.0, 16.0], [16.0, 18.0]]), jnp.array(two), greys)


def test_labels_are_those_of_the_classes_names() -> None:
    names = CLASSES[:3]
    for one in range(3):
        assert CLASSES[scene((one, 2), two=False).label()] == names[one]
        assert CLASSES[scene((one, one)).label()] == f"two {names[one]}s"
        for other in {0, 1, 2} - {one}:
            assert set(CLASSES[scene((one, other)).label()].split(" and ")) == {names[one], names[other]}


def test_label_priors_before_and_after_rejection(drawn: Drawn) -> None:
    two = drawn.scene.two
    assert stats.binomtest(two.sum(), len(two)).pvalue > 0.01
    first, second = drawn.scene.kinds[~two].T  # drawn, though the second is not seen, and never rejected
    np.testing.assert_array_equal(drawn.label[~two], first)
    assert stats.chisquare(np.bincount(3 * first + second)).pvalue > 0.01
    # What it was measured to be in a million other images; those of the priors would be far off.
    counts = np.bincount(drawn.label[two], minlength=9)[3:]
    assert stats.chisquare(counts, len(two[two]) * np.array([0.237, 0.2075, 0.227, 0.125, 0.11, 0.0935])).pvalue > 0.01
    assert stats.chisquare(counts, len(two[two]) * np.array([2, 2, 2, 1, 1, 1]) / 9).pvalue < 1e-3


def test_corners_are_as_many_as_the_kind_has_and_span_the_shape(drawn: Drawn) -> None:
    for kind, corners in zip(drawn.scene.kinds[:200].ravel(), drawn.corners[:200].reshape(-1, 20, 2), strict=True):
        assert len(np.unique(corners, axis=0)) == CORNERS[kind]
        if kind == PARALLELOGRAM:
            np.testing.assert_allclose(corners[0] - corners[1], corners[3] - corners[2], atol=1e-4)
        if kind == ELLIPSE:  # on a conic a x² + b xy + c y² = 1 about their mean
            x, y = (corners - corners.mean(axis=0)).T
            conic = np.stack([x * x, x * y, y * y], axis=1)
            coefficients = np.linalg.lstsq(conic, np.ones(20))[0]
            np.testing.assert_allclose(conic @ coefficients, 1, atol=1e-3)


def test_the_shapes_axes_turns_and_places_have_the_distributions_described(objects: Scene, drawn: Drawn) -> None:
    kinds, matrices = objects.kinds, objects.matrices.astype(np.float64)
    _, axes, before = np.linalg.svd(matrices)
    long, short = axes.T / 32
    assert short.min() > 0.2 - 1e-5
    assert long.max() < 0.8 + 1e-5
    # The larger and the smaller of two independent draws of U[0.2, 0.8].
    assert stats.kstest((long - 0.2) / 0.6, lambda u: u**2).pvalue > 0.01
    assert stats.kstest((short - 0.2) / 0.6, lambda u: 1 - (1 - u) ** 2).pvalue > 0.01
    # The longer axis was along the horizontal of the regular polygon, turned by less than half a sector.
    angle = np.arctan(before[:, 0, 1] / before[:, 0, 0])
    for kind, sector in enumerate(2 * np.pi / CORNERS):
        turned = angle[kinds == kind] / sector + 0.5
        assert stats.kstest(turned, stats.uniform.cdf).pvalue > 0.01
    # The regular polygon's base is along (1, 0), and horizontal again before the turn by a multiple of 2π/255.
    steps = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]) / (2 * np.pi / 255)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert stats.chisquare(np.bincount(np.round(steps).astype(int) % 255, minlength=255)).pvalue > 0.01
    # Where the bounding box lies between the margins.
    corners = drawn.corners[~drawn.scene.two].reshape(-1, 20, 2)
    low, high = corners.min(axis=1), corners.max(axis=1)
    for place in ((low - 1) / (30 - (high - low))).T:
        assert stats.kstest(place, stats.uniform.cdf).pvalue > 0.01


def test_nothing_is_cut_by_the_border(drawn: Drawn) -> None:
    assert drawn.corners.min() > 1 - 1e-4
    assert drawn.corners.max() < 31 + 1e-4
    ring = np.ones((32, 32), bool)
    ring[1:-1, 1:-1] = False
    background = np.broadcast_to(drawn.scene.greys[:, :1] / 127.5 - 1, (len(drawn.image), ring.sum()))
    np.testing.assert_allclose(drawn.image[:, ring], background, atol=1e-6)
    assert (drawn.image[:, 1] != background[:, :1]).any()  # the next row is reached


def test_greys_are_whole_numbers_in_their_ranges_and_either_contrast_is_as_frequent(drawn: Drawn) -> None:
    greys = drawn.scene.greys
    np.testing.assert_array_equal(greys, np.round(greys))
    bright = greys[:, 0] > 127
    assert stats.binomtest(bright.sum(), len(bright)).pvalue > 0.01
    greys = np.where(bright[:, None], 255 - greys, greys)
    for dark in (greys[:, 0], *(255 - greys[:, 1:].T)):
        assert (dark.min(), dark.max()) == (0, 114)
        assert stats.chisquare(np.bincount(dark.astype(int))).pvalue > 0.01
    assert abs(np.corrcoef(greys.T) - np.eye(3)).max() < 0.05  # every object has its own


def test_pixels_show_the_last_object_that_their_centre_is_in(drawn: Drawn) -> None:
    y, x = np.mgrid[:32, :32] + 0.5
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    for index in range(100):
        greys = drawn.scene.greys[index]
        expected, near = np.full(1024, greys[0]), np.zeros(1024, bool)
        for order in range(1 + drawn.scene.two[index]):
            start = drawn.corners[index, order, : CORNERS[drawn.scene.kinds[index, order]]].astype(np.float64)
            side = np.roll(start, -1, axis=0) - start
            normal = np.stack([-side[:, 1], side[:, 0]], axis=1) / np.linalg.norm(side, axis=1, keepdims=True)
            depth = ((pixels[:, None] - start) * normal).sum(axis=-1).min(axis=1)  # below zero outside
            expected[depth > 0] = greys[1 + order]
            near |= abs(depth) < 1e-4
        found = (drawn.image[index].ravel() + 1) * 127.5
        np.testing.assert_allclose(found[~near], expected[~near], atol=1e-3)
        assert near.sum() < 3


def test_the_second_object_hides_the_first_where_both_are() -> None:
    image = scene((ELLIPSE, PARALLELOGRAM)).image()
    assert float(image[18, 16]) == pytest.approx(51 / 127.5 - 1)  # in both
    assert float(image[10, 16]) == 1  # in the first alone
    assert float(image[0, 0]) == -1
    assert float(scene((ELLIPSE, PARALLELOGRAM), two=False).image()[18, 16]) == 1


def projection_overlap(drawn: Drawn, index: int) -> float:
    """The measure from the corners: lengths along the line of centres, areas by the shoelace formula."""
    (first, second), centres = drawn.corners[index].astype(np.float64), drawn.scene.centres[index].astype(np.float64)
    line = centres[1] - centres[0]
    d = np.linalg.norm(line)
    proj = ((first - centres[0]) @ line / d).max() + ((centres[1] - second) @ line / d).max()
    return (1 - np.exp(-(proj - d) * np.log(2) / d)) * area(second) / area(first)


def area(corners: np.ndarray) -> float:
    (x, y), (next_x, next_y) = corners.T, np.roll(corners, -1, axis=0).T
    return float((x * next_y - y * next_x).sum() / 2)


def test_pairs_overlap_by_no_more_than_half(drawn: Drawn) -> None:
    two = drawn.scene.two
    for index in range(200):
        assert drawn.overlap[index] == pytest.approx(projection_overlap(drawn, index), rel=1e-3, abs=1e-3)
    assert drawn.overlap[two].max() <= 0.5
    assert 0.57 < (drawn.overlap[~two] <= 0.5).mean() < 0.62  # so many of all pairs pass
    # The rule is only about lengths along one line; still it does what it is there for: the first can be seen.
    both = drawn.image[two], drawn.scene.greys[two][:, 1, None, None] / 127.5 - 1
    assert ((abs(both[0] - both[1]) < 1e-5).sum(axis=(1, 2)) >= 5).mean() > 0.99


def test_pixels_cover_the_shapes_area(objects: Scene, drawn: Drawn) -> None:
    alone = ~drawn.scene.two
    kinds, image = drawn.scene.kinds[alone, 0], drawn.image[alone]
    covered = (image != image[:, :1, :1]).sum(axis=(1, 2))
    areas = np.array([area(one) for one in drawn.corners[alone, 0]])
    for kind, corners in enumerate(CORNERS):
        # E[two axes' product] is (32/2)².
        expected = 256 * corners / 8 * np.sin(2 * np.pi / corners)
        assert areas[kinds == kind].mean() == pytest.approx(expected, rel=0.06)
        assert covered[kinds == kind].mean() == pytest.approx(areas[kinds == kind].mean(), rel=5e-3)


def test_a_batch_is_a_function_of_its_key() -> None:
    x, y = Shapeset().batch(8, key=jax.random.key(0))
    again = Shapeset(images=True).batch(8, key=jax.random.key(0))
    assert x.shape == (8, 1024)
    assert again[0].shape == (8, 32, 32, 1)
    assert (x.dtype, y.dtype) == (jnp.float32, jnp.int32)
    np.testing.assert_array_equal(again[0].reshape(8, 1024), x)
    np.testing.assert_array_equal(again[1], y)
    assert not np.array_equal(Shapeset().batch(8, key=jax.random.key(1))[0], x)
    assert len(np.unique(x, axis=0)) == 8


def test_batches_under_jit_vmap_and_scan_are_those_drawn_one_by_one() -> None:
    keys = jax.random.split(jax.random.key(3), 4)
    alone = [Shapeset().batch(8, key=key) for key in keys]

    @jax.jit  # the data are an argument here, but a static one
    def together(data: Shapeset) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            return data.batch(8, key=key)

        return jax.vmap(draw)(keys), lax.map(draw, keys)

    for x, y in together(Shapeset()):
        np.testing.assert_array_equal(y, np.stack([one[1] for one in alone]))
        # Another program may round otherwise, so that a pixel on the edge of a shape can go to the other side.
        assert (x != np.stack([one[0] for one in alone])).mean() < 1e-4


def test_a_batch_of_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0 is accepted from 1 up"):
        Shapeset().batch(0, key=jax.random.key(0))
