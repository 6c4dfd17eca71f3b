"""Shapeset-3x2: an endless stream of images of one or two shapes, drawn on the device as training asks for them.

>>> import jax
>>> x, y = Shapeset().batch(10, key=jax.random.key(0))
>>> x.shape, y.shape
((10, 1024), (10,))
>>> CLASSES[y[0]]
'triangle and parallelogram'
"""

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gradcourse._checks import positive_integer

__all__ = ["CLASSES", "Scene", "Shapeset", "draw_scene"]

_KINDS = ("triangle", "parallelogram", "ellipse")
_MIXED = ("triangle and parallelogram", "parallelogram and ellipse", "triangle and ellipse")
CLASSES = (*_KINDS, *_MIXED, *(f"two {kind}s" for kind in _KINDS))
_LABELS_OF_TWO = np.array([[6, 3, 5], [3, 7, 4], [5, 4, 8]], np.int32)

_SIDE = 32
_CORNERS = (3, 4, 20)
_LARGEST_OVERLAP, _MOST_DRAWS = 0.5, 50


def _around(corners: int, shift: float) -> np.ndarray:
    """Points of the unit circle at the angles 2π ((t + shift) / corners + 1/4), for t = 0 ... corners - 1."""
    angle = 2 * np.pi * ((np.arange(corners) + shift) / corners + 1 / 4)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _unmirrored(points: np.ndarray) -> np.ndarray:
    """Those of a regular polygon's points that `_support` needs: one of each two that mirror each other."""
    right, upper = points.T > -1e-9
    return points[right & (upper | (len(points) % 2 == 1))]


def _table(points: list[np.ndarray]) -> np.ndarray:
    """Every kind's points in one array: the last is repeated until all kinds have as many."""
    most = max(len(one) for one in points)
    return np.array([np.pad(one, [(0, most - len(one)), (0, 0)], mode="edge") for one in points], np.float32)


# Every shape is the linear image of a regular polygon of diameter 1 with a horizontal base. That polygon is the hull
# of its corners, and also all x with support(polar, x) <= 1: the polar polygon has a corner across each of its sides.
_OUTLINES = _table([_around(n, 0.5) / 2 for n in _CORNERS])
_HULLS = _table([_unmirrored(_around(n, 0.5) / 2) for n in _CORNERS])
_POLARS = _table([_unmirrored(_around(n, 0.0) * 2 / np.cos(np.pi / n)) for n in _CORNERS])
_AREAS = np.array([n / 8 * np.sin(2 * np.pi / n) for n in _CORNERS], np.float32)
_SECTORS = np.array([2 * np.pi / n for n in _CORNERS], np.float32)
_PIXELS = np.mgrid[:_SIDE, :_SIDE][::-1].astype(np.float32) + np.float32(0.5)  # their centres, across and down


def _support(points: np.ndarray, kind: Array, x: Array, y: Array) -> Array:
    """The largest product of (x, y) with a point of the kind's polygon: how far that reaches in this direction.

    The polygons are their own mirror images left to right, and those with evenly many corners top to bottom too, so
    that only the points on one side have to be tried.
    """
    x, y = abs(x), jnp.where(kind == 0, y, abs(y))
    return reduce(jnp.maximum, (x * px + y * py for px, py in lax.select_n(kind, *points)))


def _rotation(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cos, -sin], [sin, cos]])


class Scene(NamedTuple):
    """What one image shows: two objects, each a regular polygon mapped by `matrix @ point + centre`, and three greys.

    The second hides the first where both are, and only the first is there unless `two` is true. A kind is an index of
    `CLASSES`, 0 to 2; a place is (across, down), in pixels from a corner of the image; the greys are the
    background's, the first's and the second's, whole numbers from 0 (black) to 255.
    """

    kinds: Int[Array, "2"]
    matrices: Float[Array, "2 2 2"]
    centres: Float[Array, "2 2"]
    two: Bool[Array, ""]
    greys: Float[Array, "3"]

    def corners(self) -> Float[Array, "2 20 2"]:
        """Returns where the objects' corners are; those with fewer than 20 repeat their last."""
        outlines = jnp.asarray(_OUTLINES)[self.kinds]
        return jnp.einsum("oij,otj->oti", self.matrices, outlines) + self.centres[:, None]

    def overlap(self) -> Float[Array, ""]:
        """Returns roughly the share of the first object that the second hides: zero or less where they are apart.

        It is (1 - exp(-ln 2 (p - d) / d)) times the second's area over the first's. The centres are d apart, and
        along the line that joins them the two objects reach towards each other by p in sum, so that the first factor
        is 0 where they come to touch there, 1/2 where p = 2 d, and 1 where the centres are one.
        """
        line = self.centres[1] - self.centres[0]
        ahead, back = self.matrices[0].T @ line, self.matrices[1].T @ -line
        # The line is not scaled to length 1, so this is p d.
        reach = _support(_HULLS, self.kinds[0], *ahead) + _support(_HULLS, self.kinds[1], *back)
        areas = jnp.asarray(_AREAS)[self.kinds] * jnp.linalg.det(self.matrices)
        return (1 - 2 ** (1 - reach / (line @ line))) * areas[1] / areas[0]

    def label(self) -> Int[Array, ""]:
        """Returns the class, an index of `CLASSES`."""
        return jnp.where(self.two, jnp.asarray(_LABELS_OF_TWO)[tuple(self.kinds)], self.kinds[0])

    def image(self) -> Float[Array, "32 32"]:
        """Returns the pixels, -1 (black) to 1 (white): the grey of the last object that a pixel's centre lies in."""
        image = jnp.full((_SIDE, _SIDE), self.greys[0])
        for kind, matrix, centre, grey, there in zip(*self[:3], self.greys[1:], (True, self.two), strict=True):
            across, down = _PIXELS - centre[:, None, None]
            (a, b), (c, d) = matrix
            # The inverse matrix maps the pixels into the regular polygon's frame; its determinant is on the right.
            inside = _support(_POLARS, kind, d * across - b * down, a * down - c * across) <= a * d - b * c
            image = jnp.where(there & inside, grey, image)
        return image / 127.5 - 1


def draw_scene(*, key: PRNGKeyArray) -> Scene:
    """Returns one scene of `Shapeset`, whose docstring says how it is drawn."""
    greys_key, key = jax.random.split(key)
    u = jax.random.uniform(greys_key, (5,), jnp.float32)
    two, swapped = u[:2] < 0.5
    # The whole numbers up to 45 %, and from 55 %, of 255: 0 to 114 and 141 to 255.
    dark = jnp.floor(115 * u[2:])
    greys = jnp.where(jnp.array([False, True, True]) ^ swapped, 255 - dark, dark)

    def pair(number: Any) -> Scene:
        u = jax.random.uniform(jax.random.fold_in(key, number), (2, 7), jnp.float32)
        return Scene(*jax.vmap(_object)(u), two, greys)

    def rejected(state: tuple[Any, Scene]) -> Array:
        number, scene = state
        # Not "overlap > ...", which would let the NaN of two objects with one centre pass.
        return two & ~(scene.overlap() <= _LARGEST_OVERLAP) & (number < _MOST_DRAWS)

    _, scene = lax.while_loop(rejected, lambda state: (state[0] + 1, pair(state[0])), (1, pair(0)))
    return scene


def _object(u: Array) -> tuple[Array, Array, Array]:
    """One object's kind, matrix and centre, made of seven uniform numbers."""
    kind = (3 * u[0]).astype(jnp.int32)
    before = (u[1] - 0.5) * jnp.asarray(_SECTORS)[kind]
    axes = _SIDE * (0.2 + 0.6 * u[2:4])
    long, short = axes.max(), axes.min()
    # The stretching tilts the base of a polygon that was turned before it from the one angle to this other.
    tilt = jnp.arctan2(short * jnp.sin(before), long * jnp.cos(before))
    turn = 2 * jnp.pi / 255 * jnp.floor(255 * u[4])
    matrix = _rotation(turn - tilt) @ (jnp.array([[long], [short]]) * _rotation(before))
    low, high = 1 + _support(_HULLS, kind, *-matrix.T), _SIDE - 1 - _support(_HULLS, kind, *matrix.T)
    return kind, matrix, low + (high - low) * u[5:]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Shapeset:
    """Shapeset-3x2, the endless data of Glorot and Bengio (2010): one or two shapes, to be told apart by kind.

    An image has 32 x 32 pixels. Each of its one or two objects, equally likely, is a triangle, a parallelogram or an
    ellipse (20 corners), equally likely:

    - a regular polygon with a horizontal base, turned uniformly within one sector of its symmetry, stretched to two
      axes drawn from U[0.2, 0.8] image sides, the longer one horizontal, and turned back until its base is horizontal;
    - turned by a multiple of 2π/255, and moved uniformly over all places where it stays a pixel away from the border;
    - grey, a whole number from 55 % to 100 % of white, on a background from 0 to 45 %, or the other way round in half
      of all images. The second object hides the first where both are.

    Two objects whose `Scene.overlap` is above 1/2 are drawn anew.

    The description that this follows leaves three things open, which are read so. "Area ratio" is the second's area
    over the first's, since the rule is there to leave half of the first to be seen. What is drawn anew is the pair,
    kinds included, but not whether it is a pair: so the labels 0 to 2 keep probability 1/6 each, and no constant guess
    errs in less than 83.33 % of cases; pairs have 1/9 (mixed) and 1/18 (alike) before this, and after it 0.119, 0.104,
    0.113, 0.063, 0.055 and 0.047 in the order of `CLASSES`. The fiftieth draw is kept whatever it is; that many are
    needed less than once in 10^18 pairs.

    Examples are vectors `(1024,)`, or `(32, 32, 1)` with `images`.

    >>> x, _ = Shapeset(images=True).batch(100, key=jax.random.key(0))
    >>> x.shape, bool(abs(x).max() <= 1)
    ((100, 32, 32, 1), True)
    """

    images: bool = False

    def batch(self, size: int, *, key: PRNGKeyArray) -> tuple[Float[Array, "size *shape"], Int[Array, " size"]]:
        """Returns `size` new images and their labels, indices of `CLASSES`, drawn by `key`.

        Pixels run from -1 (black) to 1 (white). The result is a function of the key alone; it can be asked for under
        `jit`, `vmap` and `scan`.
        """
        x, y = _batch(positive_integer("size", size), key)
        return x.reshape(-1, *((_SIDE, _SIDE, 1) if self.images else (_SIDE * _SIDE,))), y


@partial(jax.jit, static_argnums=0)
def _batch(size: int, key: PRNGKeyArray) -> tuple[Array, Array]:
    scenes = jax.vmap(lambda one: draw_scene(key=one))(jax.random.split(key, size))
    return jax.vmap(Scene.image)(scenes), jax.vmap(Scene.label)(scenes)
