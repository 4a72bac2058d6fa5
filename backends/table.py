"""An equation and a target turned into a kernel: which are asked, in which order, and what each one answered."""

from collections.abc import Mapping
from dataclasses import dataclass

from tfc.backends.either import either
from tfc.backends.kernel import Kernel, Target
from tfc.backends.pallas_gpu import backward as pallas_gpu_attention
from tfc.backends.pallas_gpu import decode as pallas_gpu_decode
from tfc.backends.reference import program as reference
from tfc.backends.tilewise import tilewise
from tfc.backends.xla import (
    arrays,
    attention,
    caching,
    cudnn,
    dropout,
    formats,
    index,
    linear,
    norm,
    recurrence,
    rotate,
    routing,
)
from tfc.diagnostics import Diagnostic, TfcError, closest
from tfc.ir import ops
from tfc.ir.ops import Op
from tfc.ir.program import Eqn

__all__ = ["IMPLEMENTATIONS", "KERNELS", "Choice", "choose", "known", "named", "refused"]

_FASTER: Mapping[type[Op], tuple[Kernel, ...]] = {
    # Each row is asked from left to right. tfc's own attention comes before cuDNN's: on Hopper it is the one that
    # skips what a formula leaves out; cuDNN before jnp, which keeps all N x M scores in memory. Of its two kernels the
    # one for decoding is asked first: where it serves, the other would read keys once for each head of a group, by as
    # few blocks as there are heads.
    ops.Attention: (
        tilewise(either(pallas_gpu_decode.KERNEL, pallas_gpu_attention.KERNEL)),
        cudnn.KERNEL,
        attention.KERNEL,
    ),
    ops.FeedForward: (linear.FFN,),
    ops.Linear: (linear.LINEAR,),
    ops.Index: (index.INDEX,),
    ops.Take: (index.TAKE,),
    ops.Rotate: (rotate.KERNEL,),
    ops.Recurrence: (recurrence.RECURRENCE,),
    ops.Top: (routing.TOP,),
    ops.Calibrated: (routing.CALIBRATED,),
    ops.Rounded: (formats.ROUNDED,),
    ops.CacheRead: (caching.READ,),
    ops.CacheWrite: (caching.WRITE,),
    ops.Dropout: (dropout.DROPOUT,),
    ops.ResidualNorm: (norm.NORM,),
    **{op: (kernel,) for op, kernel in attention.KERNELS.items() if op is not ops.Attention},
    **{op: (kernel,) for op, kernel in arrays.KERNELS.items()},
}

KERNELS: Mapping[type[Op], tuple[Kernel, ...]] = {
    op: (*_FASTER.get(op, ()), reference.KERNELS[op]) for op in ops.OPS.values() if op not in (ops.Repeat, ops.Route)
}
"""Per operation, its kernels in the order asked; the reference is last and serves every target. A repeat or a route is
no kernel's work: `emit` makes a loop of it."""

IMPLEMENTATIONS: tuple[str, ...] = tuple(dict.fromkeys(k.name for row in KERNELS.values() for k in row))
"""What `implementation=` takes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A kernel, and the (name, reason) of each one that was asked before it."""

    kernel: Kernel
    refusals: tuple[tuple[str, str], ...] = ()


def known(implementation: str | None) -> None:
    """Raises TfcError (E811) unless some operation has a kernel of that name; None asks for no particular one."""
    if implementation is None or implementation in IMPLEMENTATIONS:
        return
    like = closest(implementation, IMPLEMENTATIONS)
    raise TfcError(
        Diagnostic(
            "E811",
            f"there is no implementation `{implementation}`",
            help=(f"did you mean `{like}`? " if like else "") + f"implementations are {', '.join(IMPLEMENTATIONS)}",
        )
    )


def named(op: type[Op], implementation: str | None) -> Kernel | None:
    """The operation's kernel of that name, if it has one."""
    return next((k for k in KERNELS[op] if k.name == implementation), None)


def choose(eqn: Eqn, target: Target, implementation: str | None = None) -> Choice:
    """The first kernel that does not refuse; or the one of the name asked for, if the operation has one.

    The equation's lengths are numbers. Raises TfcError (E812) where the kernel asked for refuses, or all do:
    of the one asked for each reason.
    """
    forced = named(type(eqn.op), implementation)
    if forced is not None:
        if forced.refuse(eqn, target) is None:
            return Choice(forced)
        raise TfcError(*refused(eqn, target, forced))
    refusals: list[tuple[str, str]] = []
    for kernel in KERNELS[type(eqn.op)]:
        reason = kernel.refuse(eqn, target)
        if reason is None:
            return Choice(kernel, tuple(refusals))
        refusals.append((kernel.name, reason))
    raise TfcError(
        Diagnostic(
            "E812",
            f"{' nor '.join(name for name, _ in refusals)} cannot serve this {eqn.op.name} on {target.name}: "
            + "; ".join(f"{name} {reason}" for name, reason in refusals),
            span=eqn.span,
        )
    )


def refused(eqn: Eqn, target: Target, forced: Kernel, site: str = "") -> tuple[Diagnostic, ...]:
    """Everything that the kernel asked for by name has against the equation, reason by reason, with the edit that would
    do, and the kernels that need none. site: what names the equation where no text does."""
    others = [k.name for k in KERNELS[type(eqn.op)] if k.name != forced.name and k.refuse(eqn, target) is None]
    served = f"implementation {' or '.join(others)} would serve as it is" if others else ""
    what = f"the {eqn.op.name} `{site}`" if site and eqn.span is None else f"this {eqn.op.name}"
    return tuple(
        Diagnostic(
            "E812",
            f"{forced.name} cannot serve {what} on {target.name}: {reason.text}",
            span=eqn.span,
            help="; ".join(filter(None, (reason.change.words if reason.change else "", served))),
        )
        for reason in forced.against(eqn, target)
    )
