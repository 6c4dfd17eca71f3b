"""How do convolutional networks avoid the vanishing gradient? The instrument that the course measures with.

>>> import jax, gradcourse as gc
>>> data = gc.digits()
>>> network = gc.mlp(64, [100] * 50, 10, activation="sigmoid", init="standard")
>>> params = network.init(key=jax.random.key(0))
>>> profile = gc.backward_jacobian_norms(network, params, data.x_train[:100])
>>> print(f"{profile.log10_norm[0]:.1f}")  # the gradient that reaches the input, in decades
-42.2
>>> print(profile.as_float32()[0] > 0)
True

Nothing is loaded before it is asked for: what is at hand here, and where it comes from, stands in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
