"""What theory predicts of random networks, under the names of what is measured: each subject in a module of its own."""

from gradcourse.theory import convolution, finite_width, meanfield, normalised

__all__ = ["convolution", "finite_width", "meanfield", "normalised"]
