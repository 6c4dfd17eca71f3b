"""What theory predicts of random networks, under the names of what is measured: each subject in a module of its own."""

from gradcourse.theory import convolution, criticality, finite_width, isometry, meanfield, normalised

__all__ = ["convolution", "criticality", "finite_width", "isometry", "meanfield", "normalised"]
