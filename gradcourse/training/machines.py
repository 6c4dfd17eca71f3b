r"""What teaches one layer without labels: denoising autoencoders and restricted Boltzmann machines.

Both are a layer $h = \sigma(v W + b)$ that is given $v$ between 0 and 1, with a bias $c$ for the way back:

- a *denoising autoencoder* (Bengio et al. 2007, Vincent et al. 2008): some entries of $v$ are set to 0, and
  $z = \sigma(h W^{\mathsf T} + c)$ has to be close to what $v$ was before, in cross-entropy;
- a *restricted Boltzmann machine* (Hinton, Osindero and Teh 2006): the distribution
  $p(v, h) \propto \exp(v W h^{\mathsf T} + b h^{\mathsf T} + c v^{\mathsf T})$ of binary $v$ and $h$ is fitted to the
  data by contrastive divergence (Hinton 2002).

A `Machine` has the arrays `"weight"` $W$, `(visible, hidden)`, `"bias"` $b$ and `"visible_bias"` $c$.

>>> import jax.numpy as jnp
>>> machine = {"weight": jnp.zeros((3, 2)), "bias": jnp.zeros(2), "visible_bias": jnp.ones(3)}
>>> hidden_units(machine, jnp.ones((1, 3)))
Array([[0.5, 0.5]], dtype=float32)
"""

from typing import Any

import jax
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["Machine", "contrastive_divergence", "denoising_loss", "free_energy", "hidden_units"]

Machine = dict[str, Any]


def hidden_units(machine: Machine, v: Float[Array, "batch visible"]) -> Float[Array, "batch hidden"]:
    r"""Returns $\sigma(v W + b)$: what the layer makes of `v`."""
    return jax.nn.sigmoid(_preactivation(machine, v))


def denoising_loss(
    machine: Machine, v: Float[Array, "batch visible"], noisy: Float[Array, "batch visible"]
) -> tuple[Float[Array, ""], Float[Array, "batch visible"]]:
    r"""Returns the reconstruction's cross-entropy, mean over examples, and the reconstruction $z$ itself.

    With $h = \sigma(\tilde v W + b)$ of the `noisy` input $\tilde v$ and $z = \sigma(h W^{\mathsf T} + c)$, the loss of
    an example is $-\sum_i v_i \ln z_i + (1 - v_i) \ln (1 - z_i)$ (Vincent et al. 2008).
    """
    logits = hidden_units(machine, noisy) @ machine["weight"].T + machine["visible_bias"][None]
    return optax.losses.sigmoid_binary_cross_entropy(logits, v).sum(axis=-1).mean(), jax.nn.sigmoid(logits)


def free_energy(machine: Machine, v: Float[Array, "batch visible"]) -> Float[Array, " batch"]:
    r"""Returns $F(v) = -c v^{\mathsf T} - \sum_j \ln(1 + e^{(v W + b)_j})$: the machine's $p(v) \propto e^{-F(v)}$.

    >>> import jax.numpy as jnp
    >>> machine = {"weight": jnp.zeros((3, 2)), "bias": jnp.zeros(2), "visible_bias": jnp.ones(3)}
    >>> free_energy(machine, jnp.ones((1, 3))).round(4)  # -3 - 2 ln 2
    Array([-4.3863], dtype=float32)
    """
    return -v @ machine["visible_bias"] - jax.nn.softplus(_preactivation(machine, v)).sum(axis=-1)


def contrastive_divergence(
    machine: Machine, v: Float[Array, "batch visible"], *, sweeps: int = 1, key: PRNGKeyArray
) -> tuple[Machine, Float[Array, "batch visible"]]:
    r"""Returns CD-k's estimate of the gradient of the mean of $-\ln p(v)$, and the first sweep's reconstruction.

    From the data $v^{(0)}$, $k$ = `sweeps` sweeps of Gibbs sampling, $h \sim p(h | v)$ then $v \sim p(v | h)$, lead to
    $v^{(k)}$, and the estimate is the difference of two gradients of the free energy (Hinton 2002),

    $$\overline{\nabla F(v^{(0)})} - \overline{\nabla F(v^{(k)})} ,$$

    which is that of the likelihood if $v^{(k)}$ comes from the machine's own distribution, that is, for large $k$. Data
    are binary. The reconstruction is the mean of $p(v | h)$.
    """

    def sweep(v: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        hidden_key, visible_key = jax.random.split(key)
        on = jax.random.bernoulli(hidden_key, hidden_units(machine, v)).astype(v.dtype)
        mean = jax.nn.sigmoid(on @ machine["weight"].T + machine["visible_bias"][None])
        return jax.random.bernoulli(visible_key, mean).astype(v.dtype), mean

    dreamt, means = lax.scan(sweep, v, jax.random.split(key, sweeps))
    return jax.grad(lambda m: (free_energy(m, v) - free_energy(m, dreamt)).mean())(machine), means[0]


def _preactivation(machine: Machine, v: Array) -> Array:
    return v @ machine["weight"] + machine["bias"][None]
