"""Who claimed what on the question-and-answer page, and the record of a measurement, with its verdict on a claim.

A chapter calls `record` with the values it measured and the range in which they would support the claim. The verdict
is computed, by one rule for the whole course:

- **supported**: the 95 % interval of the measured value, as printed, lies inside the range that the claim predicts;
- **refuted**: it lies outside;
- **qualified**: it straddles the border.

A claim measured in several ways is supported, or refuted, if all of them agree, and qualified otherwise. A notebook
stores the records that its cells show, and `gradcourse.course.ledger` sets out all claims by them.

>>> record("C10", "largest slope of the sigmoid", 0.25, supported_by=(0.0, 0.25), digits=2)
C10 supported: largest slope of the sigmoid 0.25 (supported if at most 0.25)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from gradcourse._checks import known_name
from gradcourse.course.intervals import estimate, interval
from gradcourse.tables import Table

__all__ = [
    "CLAIMS",
    "RECORD_MIME",
    "VERDICTS",
    "Claim",
    "Record",
    "claim_of",
    "overall_verdict",
    "record",
    "what_we_measured",
]

RECORD_MIME = "application/vnd.gradcourse.record+json"
VERDICTS = ("supported", "qualified", "refuted")


@dataclass(frozen=True)
class Claim:
    """One claim of the page, in our words: its id, who made it, and the claim."""

    id: str
    who: str
    text: str


_CLAIMS = """\
C01 | Aly | Deep belief nets get round the problem by stacking layers that were pretrained one by one.
C02 | Wikipedia, quoted by Aly | GPUs are so fast that plain back-propagation works for deep nets in spite of \
vanishing gradients.
C03 | Aly | Why would a faster processor fix a derivative at all?
C04 | Charlie Parker | Because many fast steps still move the early weights, although each gradient is small.
C05 | Sangram | Early layers learn very slowly; more updates per hour make the problem go away to some extent.
C06 | Anu | Fast matrix products have nothing to do with derivatives; initialisation matters more.
C07 | Lucas | Vanishing gradients force small learning rates, and so many small steps.
C08 | Lucas | For CNNs, going from sigmoid to rectified linear units probably had the largest effect.
C09 | Lucas | A weight's gradient is the gradient of the output, times the slope at the pre-activation, times the input.
C10 | Lucas | The logistic function's derivative is near zero for large and small inputs; so its gradients vanish.
C11 | Lucas | A rectifier's derivative is 0 for negative inputs and 1 for positive ones.
C12 | Lucas | Proper weight initialisation is another important contribution.
C13 | Hans-Peter Stoerr | A rectifier's gradient is often exactly zero, which is worse: an unlucky unit never changes.
C14 | Sunside | Perhaps that is why leaky or noisy rectifiers are used.
C15 | Charlie Parker | If gradients are small already, a small learning rate only makes it worse.
C16 | Lucas, replying | Not all gradients are small; they shrink on the way back: small in some layers, large in others.
C17 | Lucas, replying | With a large rate the layers with large gradients blow up, so the rate must be small.
C18 | Lucas, replying | Several learning rates are another way, at the price of more hyper-parameters.
C19 | runDOSrun | The learning rate is mainly tied to the exploding gradient.
C20 | runDOSrun | Too small a rate does not prevent vanishing; it delays the effect because learning slows down.
C21 | runDOSrun | The cause is the repeated nonlinearity and the multiplication by small numbers.
C22 | runDOSrun | The trend to smaller rates has to do with compute, not with vanishing.
"""
CLAIMS: tuple[Claim, ...] = tuple(Claim(*line.split(" | ")) for line in _CLAIMS.splitlines())


@dataclass(frozen=True)
class Record:
    """One measurement of one claim, with its verdict; shown in a notebook, it enters the book's table of claims."""

    claim: Claim
    quantity: str
    measured: str
    rule: str
    verdict: str

    def __repr__(self) -> str:
        return f"{self.claim.id} {self.verdict}: {self.quantity} {self.measured} ({self.rule})"

    def to_dict(self) -> dict[str, str]:
        """Returns the record for JSON, the claim by its id."""
        return vars(self) | {"claim": self.claim.id}

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        sentence = f"**{self.claim.id}** ({self.claim.who}): {self.claim.text}"
        return {
            "text/plain": repr(self),
            "text/markdown": f"{sentence}\n\nMeasured: {self.quantity} **{self.measured}**. "
            f"Verdict: **{self.verdict}** ({self.rule}).",
            RECORD_MIME: self.to_dict(),
        }


def record(
    claim: str,
    quantity: str,
    samples: ArrayLike,
    *,
    supported_by: tuple[float, float],
    digits: int = 3,
    below: float | None = None,
) -> Record:
    """Returns the record, with its verdict, of `samples` (one value per seed, or an exact number) for a claim.

    `supported_by` is the range `(low, high)` of values that would support the claim, ends included; give an infinite
    end for "at least" or "at most". `digits` are the decimals shown. For rounding residuals, whose digits differ
    between processors, `below` shows only that every sample is below it. Raises `ValueError` for an unknown claim, an
    empty range, or a sample that is not below `below`.

    >>> record("C21", "decades lost per layer", np.array([0.84, 0.85, 0.86]), supported_by=(0.1, inf), digits=2)
    C21 supported: decades lost per layer 0.85 [0.83, 0.87] (supported if at least 0.1)
    """
    low, high = supported_by
    if not low <= high:
        raise ValueError(f"supported_by={supported_by!r} is an empty range; accepted is (low, high) with low <= high.")
    if below is None:
        form, measured = f".{digits}f", estimate(samples, f"z.{digits}f")
    elif np.max(samples) < below:
        form, measured = ".3g", f"below {below:g}"
    else:
        raise ValueError(f"below={below!r} is accepted above every sample; the largest is {np.max(samples):.3g}.")
    # By the digits that are shown: a reader can check it, and a rounding next to the border cannot turn it.
    _, start, end = (float(f"{value:{form}}") for value in interval(samples))
    inside, outside = low <= start and end <= high, end < low or start > high
    verdict = "supported" if inside else "refuted" if outside else "qualified"
    return Record(claim_of(claim), quantity, measured, f"supported if {_range(low, high)}", verdict)


def claim_of(identity: str) -> Claim:
    """Returns the claim of that id; raises `ValueError` where there is none."""
    known = {claim.id: claim for claim in CLAIMS}
    return known[known_name("claim", identity, known)]


def overall_verdict(verdicts: Sequence[str]) -> str:
    """Returns the verdict on a claim that was measured in several ways.

    >>> overall_verdict(["supported", "refuted"])
    'qualified'
    """
    found = {known_name("verdict", verdict, VERDICTS) for verdict in verdicts}
    if not found:
        raise ValueError("verdicts is empty; accepted is at least one.")
    return found.pop() if len(found) == 1 else "qualified"


def what_we_measured(*rows: tuple[str, str, str]) -> Table:
    """Returns a chapter's closing table; each row is (quantity, predicted, measured).

    >>> what_we_measured(("decades per layer", "0.850", "0.849"))
    Quantity           Predicted  Measured
    decades per layer  0.850      0.849
    """
    return Table(("Quantity", "Predicted", "Measured"), rows)


def _range(low: float, high: float) -> str:
    if low == -inf or (low == 0 and high != inf):
        return f"at most {high:g}"
    return f"at least {low:g}" if high == inf else f"between {low:g} and {high:g}"
