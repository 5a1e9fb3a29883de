"""What a network's outputs are, and the divergence between two of them.

    classes   D(a, b) = mean_n KL(softmax(a_n / T) || softmax(b_n / T)),   n the samples, or their positions
    labels    D(a, b) = mean_nl KL(sigmoid(a_nl / T) || sigmoid(b_nl / T)),  each label yes or no
    numbers   D(a, b) = mean_nl (a_nl - b_nl)^2 / T^2

Each is, up to a constant, the usual loss with the reference in place of the targets: cross-entropy, binary
cross-entropy, mean squared error. Times T^2, the divergence of numbers does not depend on T.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.core.numerics.losses import kl_divergence, kl_per_sample
from steppe.errors import InputError

FORMS = ("classes", "labels", "numbers")
_IGNORED = -100  # PyTorch's default of ignore_index
_BY_LOSS: dict[str, tuple[Any, ...]] = {
    "classes": (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss),
    "labels": (
        F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss,
        F.multilabel_soft_margin_loss, nn.MultiLabelSoftMarginLoss,
    ),
    "numbers": (
        F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss,
        nn.HuberLoss, F.binary_cross_entropy, nn.BCELoss,  # the outputs of the last two are probabilities
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Outputs:
    """The form of a network's outputs: one of FORMS.

    ``dim`` is the dimension of the classes. ``ignored`` is the target of positions that do not count, where each
    sample has several (tokens, pixels), as do targets that are no class; a whole sample always counts. With
    ``ahead`` a position's target is that of the next one, as in causal language models; the last one has none.
    """

    form: str
    dim: int = 1
    ignored: int = _IGNORED
    ahead: bool = False

    def divergence(self, reference: Tensor, logits: Tensor, y: Any, T: float = 1.0) -> Tensor:
        """Return D(reference, logits) () as in the module's equations, in at least float32.

        Raises InputError for fewer than two classes, whose divergence would always be 0.
        """
        if self.form == "classes" and logits.ndim == 2:
            self._require_classes(logits)
            return kl_divergence(reference, logits, T)
        if self.form == "classes":
            each = self._by_position(reference, logits, T)
            counts = self._counted(each, y, logits.shape[self.dim])
            return each.mean() if counts is None else (each * counts).sum() / counts.sum().clamp(min=1)
        return self._by_output(reference, logits, T).mean()

    def per_sample(self, reference: Tensor, logits: Tensor, y: Any, T: float = 1.0) -> Tensor:
        """Return the divergence of each sample (B,), whose mean is `divergence` where all positions count."""
        if self.form == "classes" and logits.ndim == 2:
            self._require_classes(logits)
            return kl_per_sample(reference, logits, T)
        if self.form != "classes":
            return self._by_output(reference, logits, T).reshape(len(logits), -1).mean(1)
        each = self._by_position(reference, logits, T)
        counts = self._counted(each, y, logits.shape[self.dim])
        if counts is None:
            return each.flatten(1).mean(1)
        return (each * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1)

    def predictions(self, logits: Tensor) -> Tensor:
        """Return rows (n, K) of probabilities or numbers, one per sample or position, in at least float32."""
        wide = _wide(logits)
        if self.form == "classes":
            return torch.softmax(wide, self.dim).movedim(self.dim, -1).flatten(0, -2)
        wide = torch.sigmoid(wide) if self.form == "labels" else wide
        return wide.reshape(len(wide), -1)

    def _require_classes(self, logits: Tensor) -> None:
        if logits.shape[self.dim] < 2:
            raise InputError(
                "the network has one output, and a divergence between the probabilities of one class is always 0; "
                "give bind outputs='labels' (yes or no) or outputs='numbers' (regression)"
            )

    def _by_position(self, reference: Tensor, logits: Tensor, T: float) -> Tensor:
        self._require_classes(logits)
        log_p, log_q = (F.log_softmax(_wide(z) / T, self.dim) for z in (reference, logits))
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(self.dim)

    def _by_output(self, reference: Tensor, logits: Tensor, T: float) -> Tensor:
        a, b = _wide(reference) / T, _wide(logits) / T
        if self.form == "numbers":
            return (a - b) ** 2
        p = torch.sigmoid(a)
        yes, no = F.logsigmoid(a) - F.logsigmoid(b), F.logsigmoid(-a) - F.logsigmoid(-b)
        return p * yes + torch.sigmoid(-a) * no

    def _counted(self, each: Tensor, y: Any, classes: int) -> Tensor | None:
        """Return 1 for positions that count and 0 for others, None if all count.

        A target that is no class is left out too: a function of the user's may ignore 255, say.
        """
        if not isinstance(y, Tensor) or y.is_floating_point() or y.shape != each.shape:
            return None
        if self.ahead:
            y = F.pad(y[:, 1:], (0, 1), value=self.ignored)
        counts: Tensor = (y != self.ignored) & (y >= 0) & (y < classes)
        return counts.to(each.dtype)


def outputs_of(
    loss: Any, logits: Tensor, y: Any, form: str | None = None, of_targets: Callable[[Tensor], Any] | None = None
) -> Outputs:
    """Return what ``logits`` are, from the loss and the targets y of a first batch.

    The losses of PyTorch say it. Otherwise whole-numbered targets of one dimension less than the logits are
    classes. For others the loss decides: one that does not change if a number is added to all outputs of a sample
    depends on classes only. Of the rest, targets that are all 0 or 1, one for each output, are labels, others
    numbers.

    ``form`` is the user's word. ``of_targets`` gives the batch's loss for other targets, where the loss is no
    function of logits and targets. Raises InputError for outputs that are no floating-point tensor.
    """
    if not (isinstance(logits, Tensor) and logits.is_floating_point() and logits.numel()):
        raise InputError(
            "this method compares the model's outputs, and the model returns only its loss; return the logits too"
        )
    base: Any = loss
    settings = dict[str, Any]()
    while isinstance(base, partial):
        base, settings = base.func, {**base.keywords, **settings}
    ignored = settings.get("ignore_index", getattr(base, "ignore_index", _IGNORED))
    dim = _class_dim(loss, base, logits, y)
    kind = Outputs(form or _form(loss, base, logits, y, dim), dim, ignored)
    function = partial(copy.deepcopy(loss), logits) if callable(loss) else of_targets  # a loss may have a state
    return replace(kind, ahead=kind.form == "classes" and _is_ahead(function, logits, y, kind))


def _is_ahead(loss: Callable[[Tensor], Any] | None, logits: Tensor, y: Any, kind: Outputs) -> bool:
    """Return whether the first target of a sequence (B, T) is that of no position: its loss alone is 0 or NaN."""
    tokens = logits.ndim == 3 and isinstance(y, Tensor) and y.ndim == 2 and not y.is_floating_point()
    if loss is None or not tokens or y.shape != logits.select(kind.dim, 0).shape:
        return False
    first = torch.full_like(y, kind.ignored)
    first[:, 0] = int(kind.ignored == 0)
    try:
        return not float(loss(first)) > 0
    except Exception:  # it may ignore other targets
        return False


def _form(loss: Any, base: Any, logits: Tensor, y: Any, dim: int) -> str:
    for form, losses in _BY_LOSS.items():
        if base in losses or isinstance(base, tuple(c for c in losses if isinstance(c, type))):
            return form
    several = logits.ndim > 1 and logits.shape[dim] > 1
    if not isinstance(y, Tensor):
        return "classes" if several else "numbers"
    same = y.numel() == logits.numel()
    if several and not same and not y.is_floating_point():
        return "classes"
    if several and (_shift_changes(loss, logits, y, dim) is False):
        return "classes"
    wide = y.double()
    if (
        several
        and not callable(loss)
        and same
        and bool((wide >= 0).all() & ((wide.sum(dim) - 1).abs() < 1e-3).all())
    ):
        return "classes"
    return "labels" if same and bool(((wide == 0) | (wide == 1)).all()) else "numbers"


def _class_dim(loss: Any, base: Any, logits: Tensor, y: Any) -> int:
    """Return the dimension of the classes: the second, as in PyTorch's losses, or the last, as in text models."""
    if logits.ndim <= 2 or base in _BY_LOSS["classes"] or isinstance(base, nn.CrossEntropyLoss | nn.NLLLoss):
        return min(1, logits.ndim - 1)
    second = logits.shape[:1] + logits.shape[2:]
    if isinstance(y, Tensor) and not y.is_floating_point():
        fits = [d for d, shape in ((1, second), (-1, logits.shape[:-1])) if y.shape == shape]
        if len(fits) == 1:
            return fits[0]
    for dim in (1, -1):
        if _shift_changes(loss, logits, y, dim) is False:
            return dim
    return -1 if logits.ndim == 3 else 1


def _shift_changes(loss: Any, logits: Tensor, y: Any, dim: int) -> bool | None:
    """Return whether the loss changes if a number is added to all classes of a position; None if unknown."""
    if not callable(loss):
        return None
    with torch.no_grad():
        wide = logits.detach().double()
        shift = torch.linspace(-1, 2, wide.select(dim, 0).numel(), dtype=wide.dtype, device=wide.device)
        moved = wide + shift.reshape(wide.select(dim, 0).shape).unsqueeze(dim)
        try:
            loss = copy.deepcopy(loss)  # it may have a state, such as a running mean
            before, after = (float(loss(z.to(_wide(logits).dtype), y)) for z in (wide, moved))
        except Exception:  # a loss may take nothing but its own batches
            return None
    if not (math.isfinite(before) and math.isfinite(after)):
        return None
    return abs(before - after) > 1e-4 * max(abs(before), abs(after), 1e-6)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
