"""What a monitor has seen of a training run: numbers per snapshot and layer, and how they are shown and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from gradcourse._checks import known_name
from gradcourse.diagnosis.findings import READ_ON, THRESHOLDS, finding
from gradcourse.diagnosis.report import Finding
from gradcourse.profile import Profile
from gradcourse.tables import Table, json_value

__all__ = ["MonitorHistory"]

SHOWN = 12  # layers, in a table or a plot


@dataclass(frozen=True)
class MonitorHistory:
    """What a monitor has seen, in order of time; `None` where this kind of monitor does not look.

    - `step`: how many steps had been taken before the one that was looked at, `(snapshot,)`;
    - `update_to_weight`: a profile `(snapshot, layer)` of the norm of the update over that of the parameters; infinite
      where those are all zero, NaN where the update is too or the optimiser was given no parameters;
    - `finite`: whether gradient, update and parameters were all finite, `(snapshot, layer)`;
    - `gradient`: a profile of the norm of each layer's gradient, `(snapshot, layer)`;
    - `zero_share`: the share of the gradient's entries that are exactly zero, `(snapshot, layer)`;
    - `loss`: what the step returned as such, `(snapshot,)`;
    - `seconds_per_step`: from the last snapshot's end to this one's, over the steps between, `(snapshot,)`: what the
      loop takes, with all else it does. NaN at the first snapshot, where the step is compiled.

    Only a monitored optimiser knows gradients, only a wrapped step knows loss and time.
    """

    step: Int[np.ndarray, " snapshot"]
    update_to_weight: Profile
    finite: Bool[np.ndarray, "snapshot layer"]
    gradient: Profile | None = None
    zero_share: Float[np.ndarray, "snapshot layer"] | None = None
    loss: Float[np.ndarray, " snapshot"] | None = None
    seconds_per_step: Float[np.ndarray, " snapshot"] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names."""
        return self.update_to_weight.layers

    def values(self) -> dict[str, np.ndarray]:
        """Returns all that was seen as plain arrays, with a snapshot's entries along the first axis.

        They are called as the fields are; of the gradient it is `"log10_gradient"`, the log10 of the norm.
        """
        with np.errstate(over="ignore"):
            ratio = 10.0**self.update_to_weight.log10_norm
        seen = {
            "loss": self.loss,
            "seconds_per_step": self.seconds_per_step,
            "log10_gradient": None if self.gradient is None else self.gradient.log10_norm,
            "update_to_weight": ratio,
            "zero_share": self.zero_share,
            "finite": self.finite,
        }
        return {name: values for name, values in seen.items() if values is not None}

    def __repr__(self) -> str:
        count, depth = len(self.step), len(self.layers)
        if not count:
            return f"0 snapshots of {depth} layers"
        when, seen, shown = sorted({0, count // 2, count - 1}), self.values(), _thinned(depth)
        columns: list[tuple[str, Sequence[str]]] = [("layer", self.layers)]
        for name, heading in (("log10_gradient", "log10 gradient"), ("update_to_weight", "update/weight")):
            for snapshot in when if name in seen else ():
                label = f"step {self.step[snapshot]}"
                words = [f"{value:.2g}" for value in seen[name][snapshot]]
                columns.append((f"{heading}, {label}" if snapshot == when[0] else label, words))
        if self.zero_share is not None:
            columns.append(("zeros", [f"{share:.0%}" for share in self.zero_share[-1]]))
        columns.append(("finite", ["yes" if good else "NO" for good in np.all(self.finite, axis=0)]))
        rows = [[entries[index] for _, entries in columns] for index in shown]
        lines = [
            f"{count} snapshot{'s'[: count != 1]} of {depth} layers, steps {self.step[0]} to {self.step[-1]}",
            repr(Table([heading for heading, _ in columns], rows)),
        ]
        if len(shown) < depth:
            lines.append(f"({depth - len(shown)} layers between these are not shown)")
        if self.loss is not None:
            lines.append("loss " + ", ".join(f"{self.loss[snapshot]:.4g}" for snapshot in when) + " at these steps")
        if self.seconds_per_step is not None and np.isfinite(self.seconds_per_step).any():
            lines.append(f"{np.nanmedian(self.seconds_per_step):.3g} seconds per step (median)")
        return "\n".join(lines)

    def plot(self, quantity: str | None = None) -> Any:
        """Returns a figure of a quantity of every layer against the step; of many layers, some.

        `quantity` is `"log10_gradient"`, `"update_to_weight"` or `"zero_share"`, by default the first that was seen.
        """
        from gradcourse.plots import layers_over_steps  # with it comes matplotlib

        labels = {
            "log10_gradient": r"$\log_{10}$ norm of the gradient",
            "update_to_weight": "update / weight",
            "zero_share": "share of zeros in the gradient",
        }
        seen, shown = self.values(), _thinned(len(self.layers))
        there = [name for name in labels if name in seen]
        name = there[0] if quantity is None else known_name("quantity", quantity, there)
        values = np.where(np.isfinite(seen[name]), seen[name], np.nan)[:, shown]
        layers, log = [self.layers[index] for index in shown], "y" if name == "update_to_weight" else ""
        return layers_over_steps(self.step, values, layers=layers, ylabel=labels[name], log=log)

    def findings(self, read_on: Mapping[str, str] = READ_ON) -> tuple[Finding, ...]:
        """Returns what is wrong, by the rules of `diagnosis.findings`: layers that are not finite, or frozen.

        A layer is frozen whose `update_to_weight` is below the threshold at each of the last three snapshots; with
        fewer there is no telling. `read_on` says for each kind of finding where it is explained.

        >>> ratio = Profile.from_log10([[-3, -9]] * 3, layers=("a", "b"), quantity="update over weight")
        >>> history = MonitorHistory(np.arange(3), ratio, np.ones((3, 2), bool))
        >>> for finding in history.findings():
        ...     print(finding.kind, finding.layers, finding.evidence)
        frozen ('b',) at step 2 the update of b is at most 1e-09 of its weights
        """
        found = []
        bad, layers = np.logical_not(self.finite), np.array(self.layers, str)
        if bad.any():
            first, names = int(np.argmax(bad.any(axis=1))), layers[bad.any(axis=0)].tolist()
            began = _listed(layers[bad[first]].tolist())
            evidence = f"NaN or infinity since step {self.step[first]}, first seen in {began}"
            rule = "the gradient, the update or a parameter holds NaN or infinity at a snapshot"
            advice = "go back to a checkpoint from before that step, and diagnose it there."
            found.append(finding("not finite", names, evidence, rule, advice, read_on))
        least, last = THRESHOLDS["frozen"], self.values()["update_to_weight"][-3:]
        slow = np.all(last < least, axis=0)
        if slow.any() and len(last) == 3:
            names, most = layers[slow].tolist(), last[-1][slow].max()
            few = "its" if len(names) == 1 else "their"
            evidence = f"at step {self.step[-1]} the update of {_listed(names)} is at most {most:.2g} of {few} weights"
            rule = f"update over weight is below {least:g} at each of the last three snapshots"
            advice = "raise the learning rate (of these layers), or look at why their gradient is small: diagnose it."
            found.append(finding("frozen", names, evidence, rule, advice, read_on))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Returns `layers`, `step` and `values` as lists, for JSON: infinities as words, `None` for NaN."""
        return json_value({"layers": self.layers, "step": self.step, **self.values()})

    def write(self, writer: Any, prefix: str = "gradcourse") -> None:
        """Writes every scalar to `writer`, which has `add_scalar(tag, value, step)`, as TensorBoard's writers do.

        Instead of a writer give a folder, and one of tensorboardX is opened there and closed again; that raises
        `ImportError` where tensorboardX is not installed. Tags are `gradcourse/log10_gradient/encoder.dense` and so
        on. All of the history is written: call it once, at the end, or with a writer of your own each time.
        """
        if isinstance(writer, str | Path):
            try:
                opened = import_module("tensorboardX").SummaryWriter(str(writer))
            except ImportError:
                raise ImportError(
                    f"writer={str(writer)!r} is a folder, into which tensorboardX would write, and that is not "
                    "installed; accepted too is any writer with add_scalar. Install it: pip install tensorboardX."
                ) from None
            with opened:
                return self.write(opened, prefix)
        for name, values in self.values().items():
            for step, now in zip(self.step.tolist(), values, strict=True):
                tags = [f"{prefix}/{name}"] if np.ndim(now) == 0 else [f"{prefix}/{name}/{one}" for one in self.layers]
                for tag, value in zip(tags, np.atleast_1d(now), strict=True):
                    writer.add_scalar(tag, float(value), step)
        return None


def _listed(names: Sequence[str]) -> str:
    """At most three names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _thinned(count: int) -> list[int]:
    """Indices of at most `SHOWN` of so many layers, the first and the last included."""
    return np.unique(np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int)).tolist()
