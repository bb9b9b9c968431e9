"""Losses between the outputs of two networks: each a scalar, 0 where they agree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from slimfast.distillation.counting import mean_counted, nothing


def soft_target_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    class_dim: int = -1,
    counted: Tensor | None = None,
) -> Tensor:
    """Compare soft targets: T^2 KL(softmax(teacher / T) || softmax(student / T)), a scalar.

    The mean over all but the class dim. Both are logits of one shape; a class that is -inf in one of them is
    left out, and a position without any other counts nothing. ``counted``, of the shape without the class
    dim, is true at the positions to take the mean over. T^2 keeps the gradient's size independent of T
    (Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2). Computed in
    float32 or wider.
    """
    ours, theirs = widened(student) / temperature, widened(teacher) / temperature
    absent = ours.isneginf() | theirs.isneginf()
    empty = absent.all(dim=class_dim)
    for logits in (ours, theirs):
        logits.masked_fill_(absent, -torch.inf).masked_fill_(empty.unsqueeze(class_dim), 0.0)
    log_p, log_q = theirs.log_softmax(class_dim), ours.log_softmax(class_dim)
    divergence = (log_p.exp() * (log_p - log_q).masked_fill(absent, 0.0)).sum(dim=class_dim)
    counted = ~empty if counted is None else counted & ~empty
    return mean_counted(divergence, counted) * temperature**2


def binary_target_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """Compare soft yes and no: T^2 times the divergence of each logit at temperature T, a scalar.

    The mean over all. Both are logits of one shape, each of a question of its own; one that is -inf in either
    is left out. ``counted`` is true at those to take the mean over. Computed in float32 or wider.
    """
    ours, theirs = widened(student) / temperature, widened(teacher) / temperature
    there = ours.isfinite() & theirs.isfinite()
    ours, theirs = torch.where(there, ours, 0.0), torch.where(there, theirs, 0.0)
    divergence = torch.zeros_like(ours)
    for sign in (1, -1):
        log_p, log_q = functional.logsigmoid(sign * theirs), functional.logsigmoid(sign * ours)
        divergence = divergence + log_p.exp() * (log_p - log_q)
    return mean_counted(divergence, there if counted is None else counted & there) * temperature**2


def decoupled_loss(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    temperature: float = 4.0,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    """Compare logits in two parts: the target class against the rest, and the other classes among them.

    Logits (N, classes), targets (N,) class indices. T^2 times, with b = (p_t, 1 - p_t) and q the softmax over
    the classes but t: ``target_weight`` KL(b_teacher || b_student) + ``other_weight`` KL(q_teacher ||
    q_student), means over the samples. Soft targets weigh the second by the teacher's 1 - p_t, which hides it
    where the teacher is sure (Zhao et al., CVPR 2022, "Decoupled Knowledge Distillation", equation 7).
    Computed in float32 or wider.
    """
    ours, theirs = widened(student) / temperature, widened(teacher) / temperature
    one_hot = functional.one_hot(targets, ours.shape[-1]).bool()

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Take log (p_t, 1 - p_t), (N, 2), and log q, (N, classes - 1)."""
        rest = logits.masked_fill(one_hot, -torch.inf).logsumexp(-1)
        whole = logits.logsumexp(-1)
        binary = torch.stack([logits[one_hot] - whole, rest - whole], dim=-1)
        others = logits[~one_hot].view(len(logits), logits.shape[-1] - 1).log_softmax(-1)
        return binary, others

    total = torch.zeros((), dtype=ours.dtype, device=ours.device)
    weights = (target_weight, other_weight)
    for weight, log_q, log_p in zip(weights, parts(ours), parts(theirs), strict=True):
        absent = log_p.isneginf() | log_q.isneginf()
        divergence = (log_p.exp() * (log_p - log_q).masked_fill(absent, 0.0)).sum(-1)
        total = total + weight * divergence.mean()
    return total * temperature**2


def correlation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Compare how two networks rank classes in a sample, and samples in a class; a scalar.

    T^2 times (1 - the correlation of the classes' probabilities in a sample) + (1 - that of the samples' in a
    class), means over the samples and over the classes. Logits (N, classes). Matches how classes and samples
    rank, not the probabilities themselves, which a much smaller network cannot reach (Huang et al., NeurIPS
    2022, "Knowledge Distillation from A Stronger Teacher", DIST, with both weights 1). Computed in float32 or
    wider.
    """
    p = (widened(student) / temperature).softmax(-1)
    q = (widened(teacher) / temperature).softmax(-1)
    between = 1 - _pearson(p, q).mean()
    within = 1 - _pearson(p.T, q.T).mean()
    return (between + within) * temperature**2


def relational_loss(student: Tensor, teacher: Tensor, *, angle_weight: float = 2.0) -> Tensor:
    """Compare how two batches of vectors lie; a scalar.

    Huber loss of all distances, each in units of its batch's mean distance, plus ``angle_weight`` times that
    of the cosines of all angles at a sample between two more.

    (N, ...) each, of any two widths, flattened; -inf counts as 0. (Park et al., CVPR 2019, "Relational
    Knowledge Distillation", equations 5 to 10, with its ratio of 1 to 2.) The angles take N^3 elements.
    Computed in float32 or wider.
    """
    ours, theirs = (widened(x).flatten(1) for x in (student, teacher))
    ours, theirs = (x.masked_fill(x.isneginf(), 0.0) for x in (ours, theirs))
    distance = functional.smooth_l1_loss(_distances(ours), _distances(theirs))
    return distance + angle_weight * functional.smooth_l1_loss(_angles(ours), _angles(theirs))


def attention_loss(student: Tensor, teacher: Tensor, counted: Tensor | None = None) -> Tensor:
    """Compare where a layer is active, whatever the channel; a scalar.

    Squared distance of the attention maps, mean over the samples. Features (N, C, ...) of the same positions
    and any two widths; the map is the sum over the channels of
    squares, scaled to norm 1 over the positions (Zagoruyko and Komodakis, ICLR 2017, "Paying More Attention
    to Attention", equation 2 with p = 2). ``counted``, (N, ...), is true at the positions to compare.
    Computed in float32 or wider.
    """
    if counted is not None:
        samples = counted.reshape(len(counted), -1).any(1)
        if not bool(samples.any()):
            return nothing(widened(student))
        student, teacher = (
            x[samples].masked_fill(~counted[samples].unsqueeze(1), 0.0) for x in (student, teacher)
        )
    ours, theirs = (
        functional.normalize(widened(x).square().sum(1).flatten(1), dim=1) for x in (student, teacher)
    )
    return (ours - theirs).square().sum(1).mean()


def _pearson(p: Tensor, q: Tensor) -> Tensor:
    """Correlate the rows, (N,); 0 where one does not vary."""
    p, q = p - p.mean(-1, keepdim=True), q - q.mean(-1, keepdim=True)
    return functional.cosine_similarity(p, q, dim=-1)


def _distances(x: Tensor) -> Tensor:
    """Measure the (N, N) Euclidean distances as shares of their mean over all pairs."""
    squares = (x[:, None] - x[None]).square().sum(-1)
    # The root has no derivative at 0, where a sample meets itself.
    found = torch.where(squares > 0, squares.clamp_min(torch.finfo(x.dtype).tiny).sqrt(), 0.0)
    pairs = max(int((found > 0).sum()), 1)
    return found / (found.sum() / pairs).clamp_min(torch.finfo(x.dtype).tiny)


def _angles(x: Tensor) -> Tensor:
    """Measure the (N, N, N) cosines at sample i of the angle from j to k."""
    towards = functional.normalize(x[None] - x[:, None], dim=-1)
    return towards @ towards.transpose(1, 2)


def widened(x: Tensor) -> Tensor:
    """Widen ``x`` to float32 if it is narrower: 16 bits lose the small probabilities."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
