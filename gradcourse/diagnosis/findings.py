"""The rules by which a report's rows become findings: what is looked at, and from which number on it is a problem.

- *not finite*: an activation, a parameter, a gradient or the loss holds NaN or infinity; nothing else is judged then;
- *underflow*: share of the norm of a layer's gradient that is lost in the model's own dtype;
- *vanishing*, *exploding*: decades lost, or gained, from the last layer to the first, by the profile's median slope;
- *dead*: share of a layer's units that are dead, or all its units silent. Deep rectifier networks have half of them so
  at their start; in narrow layers the threshold is three standard errors above that;
- *saturated*: share of a layer's activations in the tails of their function;
- *frozen*: update over weight (about 1e-3 is usual), or a gradient of exactly 0 that nothing above explains.

From which number on is in `THRESHOLDS`. They are wide of what healthy networks do: the tests hold them against a table
of healthy networks and of networks that were made ill in one known way.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf, isfinite, log10, nan, sqrt

import numpy as np

from gradcourse.diagnosis.report import Finding, LayerReport

__all__ = ["READ_ON", "THRESHOLDS", "finding", "findings_of", "gradient_slope"]

Found = Iterator[tuple[str, Sequence[LayerReport], str, str, str]]  # kind, where, evidence, rule, advice

THRESHOLDS: dict[str, float] = {
    "vanishing": 2.0,
    "exploding": 2.0,
    "dead": 0.7,
    "saturated": 2 / 3,
    "frozen": 1e-6,
    "underflow": 0.3,
}

READ_ON: Mapping[str, str] = {  # where each kind is explained; a caller may give places of their own
    "not finite": "chapter 10 of the course, precision",
    "underflow": "chapter 10 of the course, precision",
    "exploding": "chapter 6 of the course, the learning rate",
    "vanishing": "chapter 2 of the course, the sigmoid derivative",
    "dead": "chapter 3 of the course, rectifiers",
    "saturated": "chapter 4 of the course, glorot initialisation",
    "frozen": "chapter 6 of the course, the learning rate",
}


def gradient_slope(rows: Sequence[LayerReport]) -> tuple[float, float, float]:
    """Returns the decades per layer by which the activation gradient's norm grows towards the loss, with its interval.

    It is the median of the slopes between any two layers of the chain (Theil 1950, Sen 1968), so that a few layers
    whose gradient is small by nature, such as an attention's queries and keys, do not count. NaN below three layers.
    """
    from scipy.stats import theilslopes  # a large part of SciPy, needed here alone

    chain = [row.log10_activation_gradient for row in rows if row.in_chain]
    depth, values = np.arange(len(chain)), np.array(chain)
    there = np.isfinite(values)
    if there.sum() < 3:
        return nan, nan, nan
    slope, _, low, high = theilslopes(values[there], depth[there])
    return float(slope), float(low), float(high)


def findings_of(
    rows: Sequence[LayerReport], loss: float, sound_input: bool = True, read_on: Mapping[str, str] = READ_ON
) -> tuple[Finding, ...]:
    """Returns what is wrong, worst first; `read_on` says for each kind of finding where it is explained."""
    rules = (_underflow, _slope, _dead, _saturated, _frozen)
    found = [*_not_finite(rows, loss, sound_input)] or [one for rule in rules for one in rule(rows)]
    return tuple(
        finding(kind, [row.name for row in where], evidence, rule, advice, read_on)
        for kind, where, evidence, rule, advice in found
    )


def finding(
    kind: str, layers: Iterable[str], evidence: str, rule: str, advice: str, read_on: Mapping[str, str]
) -> Finding:
    """Returns a finding, with its kind's threshold, and where to read on about it."""
    return Finding(kind, tuple(layers), evidence, rule, THRESHOLDS.get(kind, nan), advice, read_on.get(kind, ""))


def _not_finite(rows: Sequence[LayerReport], loss: float, sound_input: bool) -> Found:
    kind, rule = "not finite", "an activation, a gradient or the loss holds NaN or infinity"
    forward = [row for row in rows if not (row.finite and row.finite_parameters)]
    # A parameter that several layers share has one gradient: where it went wrong, only the activations' tell.
    backward = [row for row in rows if not row.log10_activation_gradient < inf]
    backward = backward or [row for row in rows if row.count and not row.log10_parameter_gradient < inf]
    if not sound_input:
        evidence = "the batch itself holds NaN or infinity, before any layer"
        advice = "clean the data; a missing value, or a feature divided by a spread of 0, is the usual cause."
        yield kind, [], evidence, "the batch holds NaN or infinity", advice
    elif forward:
        own = "whose parameters are finite" if forward[0].finite_parameters else "whose parameters hold it"
        evidence = f"NaN or infinity from layer {forward[0].name!r} on, {own} ({len(forward)} of {len(rows)} layers)"
        advice = (
            "look at that layer's parameters and input first. If training has brought them there, go back to an "
            "earlier checkpoint, lower the learning rate or clip the gradient; in float16, an activation above 65,504 "
            "is the usual cause."
        )
        yield kind, forward, evidence, rule, advice
    elif backward:
        evidence = (
            f"all activations are finite, but the gradient is not from layer {backward[-1].name!r} down to the input "
            f"({len(backward)} of {len(rows)} layers)"
        )
        advice = (
            "look for a function whose derivative is infinite or 0/0 right behind that layer (a square root or a norm "
            "at 0, a logarithm, a `where` that hides a NaN), or for a loss scale that is too large."
        )
        yield kind, backward, evidence, rule, advice
    elif not isfinite(loss):
        advice = "compute the loss from logits (log-softmax), not from the logarithm of probabilities."
        yield kind, [], "all layers are finite, but the loss is not", rule, advice


def _underflow(rows: Sequence[LayerReport]) -> Found:
    least, lost = THRESHOLDS["underflow"], _underflown(rows)
    if lost:
        deepest = min(row.log10_activation_gradient for row in lost if row.lost > least)
        size = f"; the smallest norm is 1e{deepest:.0f}" if isfinite(deepest) else ""
        gone = sum(row.lost > 0.999 or row.log10_activation_gradient == -inf for row in lost)
        evidence = f"{len(lost)} layers lose more than {least:.0%} of their gradient's norm in {lost[0].dtype}, "
        evidence += f"{gone} of them all of it{size}"
        rule = f"with a scaled loss the gradient's norm is larger by more than {least:.0%} of it"
        advice = (
            "scale the loss, or compute in bfloat16 or float32; where gradients vanish with depth, cure that first."
        )
        yield "underflow", lost, evidence, rule, advice


def _underflown(rows: Sequence[LayerReport]) -> list[LayerReport]:
    """The layers that lose gradient to underflow, and those before them that even a scaled loss gives none."""
    loses = [row.lost > THRESHOLDS["underflow"] for row in rows]
    none = [any(loses[index:]) and row.log10_activation_gradient == -inf for index, row in enumerate(rows)]
    return [row for row, *one in zip(rows, loses, none, strict=True) if any(one)]


def _slope(rows: Sequence[LayerReport]) -> Found:
    slope, low, high = gradient_slope(rows)
    chain = [row for row in rows if row.in_chain]
    lost = slope * (len(chain) - 1)
    kind, verb = ("vanishing", "loses") if lost > 0 else ("exploding", "gains")
    if abs(lost) >= THRESHOLDS[kind]:  # never if it is NaN
        gains = [row.gain for row in chain if row.gain > 0]
        gain = f"; a layer's mean squared gain is {10 ** np.mean(np.log10(gains)):.2g}" if gains else ""
        low, high = sorted([abs(low), abs(high)])
        evidence = (
            f"the gradient {verb} {abs(slope):.2g} decades per layer on the way back [{low:.2g}, {high:.2g}], "
            f"{abs(lost):.1f} over {len(chain)} layers{gain}"
        )
        rule = f"the slope of the profile times the number of layers is at least {THRESHOLDS[kind]:g} decades"
        advice = {
            "vanishing": "rectifiers with He's initialisation, or tanh with Glorot's; normalisation; shortcuts. "
            "Sigmoids need weights four times as large as tanh, and biases that centre them.",
            "exploding": "smaller initial weights (He's for rectifiers, Glorot's for tanh), normalisation, shortcuts "
            "whose branches are scaled down with depth; clipping keeps training alive but does not cure it.",
        }
        yield kind, chain, evidence, rule, advice[kind]


def _dead(rows: Sequence[LayerReport]) -> Found:
    # Half the units of a deep rectifier network may be off at its start; what is above that by chance is no illness.
    least = THRESHOLDS["dead"]
    limits = [max(least, 0.5 + 1.5 / sqrt(row.units or 1)) for row in rows]
    dead = [row for row, limit in zip(rows, limits, strict=True) if row.units and (row.dead > limit or row.silent == 1)]
    if dead:
        worst = max(dead, key=lambda row: (row.dead, row.silent))
        evidence = (
            f"in layer {worst.name!r} {worst.silent:.0%} of {worst.units} units have a slope of exactly 0 on every "
            f"example, and {worst.dead:.0%} would have it 4 standard deviations further out{_in_all(dead)}"
        )
        rule = f"more than {least:.0%} of a layer's units are dead (more where they are few), or all are silent"
        advice = (
            "look at the biases and at the input's mean; a lower learning rate or a warm-up, if training has killed "
            "them; a leaky rectifier, whose slope is nowhere 0."
        )
        yield "dead", dead, evidence, rule, advice


def _saturated(rows: Sequence[LayerReport]) -> Found:
    saturated = [row for row in rows if row.saturated > THRESHOLDS["saturated"]]
    if saturated:
        worst = max(saturated, key=lambda row: row.saturated)
        evidence = (
            f"in layer {worst.name!r} {worst.saturated:.0%} of the activations lie in the tails, where the slope is "
            f"below 5 % of the steepest{_in_all(saturated)}"
        )
        rule = f"more than {THRESHOLDS['saturated']:.0%} of a layer's activations are in the tails"
        advice = "smaller weights or biases, standardised inputs, normalisation before the activation."
        yield "saturated", saturated, evidence, rule, advice


def _frozen(rows: Sequence[LayerReport]) -> Found:
    # Where weights of 0 are about to move, such as a branch's that starts closed, the others' gradient will come.
    excused = rows if any(row.waiting for row in rows) else _underflown(rows)
    held = [row for row in rows if row.count]
    still = [row for row in held if row.log10_parameter_gradient == -inf and row not in excused]
    slow = [row for row in held if row.log10_parameter_gradient != -inf and row.update_to_weight < THRESHOLDS["frozen"]]
    parts = [f"no gradient at all reaches the parameters of {_listed(still)}"] if still else []
    if slow:
        least = min(slow, key=lambda row: row.update_to_weight)
        ratio = least.update_to_weight
        size = f"by a share of 1e{log10(ratio):.0f}" if ratio > 0 else "not at all"
        parts.append(f"an update changes the parameters of {_listed(slow)} too little; {least.name!r} {size}")
    if parts:
        rule = f"a layer's parameters have a gradient of exactly 0, or an update below {THRESHOLDS['frozen']:g} of them"
        advice = (
            "if it was not meant: look for a stop_gradient, a layer whose result is not used, or a dead layer nearer "
            "to the loss; for small updates, raise the rate of these layers or let the optimiser normalise (Adam)."
        )
        yield "frozen", [*still, *slow], "; ".join(parts), rule, advice


def _in_all(rows: Sequence[LayerReport]) -> str:
    return f" ({len(rows)} layers in all)" if len(rows) > 1 else ""


def _listed(rows: Sequence[LayerReport]) -> str:
    names = [repr(row.name) for row in rows]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]} ({len(names)} layers)"
