"""`int4(group = 128, fit = gptq(damp = 0.01))` -> a format with its settings complete, and the rounding to it."""

from collections.abc import Mapping, Sequence
from typing import cast

from tfc.diagnostics import Edit, closest
from tfc.grammar.lowering.arguments import Call
from tfc.grammar.lowering.session import Frame, counted, fail
from tfc.grammar.lowering.values import NOTHING, Given, Kept, Meaning, describe, is_number
from tfc.ir.formats import CHOICES, FITTERS, FORMATS, Fit, Fitter, Format, FormatKind, Rounded
from tfc.source import Span

__all__ = ["called", "fit_of", "format_names", "kept_of", "rounded"]

Setting = bool | int | float | str


def format_names() -> dict[str, Meaning]:
    """What the names of formats and of fitting procedures mean: complete where no setting must be given."""
    found: dict[str, Meaning] = {}
    for kind in FORMATS.values():
        settings = _complete(kind)
        found[kind.name] = kind if settings is None else Kept(Format(kind.name, settings))
    for fitter in FITTERS.values():
        settings = _complete(fitter)
        if settings is not None:
            found[fitter.name] = Fit(fitter.name, settings)
    return found


def _complete(row: FormatKind | Fitter) -> tuple[tuple[str, Setting], ...] | None:
    """The settings at their defaults, or None where one has no default."""
    kept = tuple((n, v) for n, v in row.settings.items() if not isinstance(v, type))
    return kept if len(kept) == len(row.settings) else None


# ---- calls


def called(
    base: Kept | FormatKind | Fit, positional: Sequence[Given], named: Mapping[str, Given], span: Span, frame: Frame
) -> Kept | Fit:
    """`int4(group = 128)`: settings by name, or in the table's order. A format may carry `fit`."""
    name = base.format.name if isinstance(base, Kept) else base.name
    row = FITTERS[name] if isinstance(base, Fit) else FORMATS[name]
    known = [*row.settings, *(["fit"] if isinstance(row, FormatKind) else [])]
    shown = f"{name}({', '.join(row.settings)})" if row.settings else name
    if len(positional) > len(row.settings):
        takes = counted(len(row.settings), "setting")
        fail("E207", f"`{name}` takes {takes}, not {len(positional)}", frame.at(span), help=shown)
    given = dict(zip(row.settings, positional, strict=False))
    for key, value in named.items():
        if key not in known:
            _unknown(name, key, value, known, frame)
        if key in given:
            fail("E214", f"`{key}` is given twice", frame.at(value.argument.span))
        given[key] = value
    fit = fit_of(given["fit"].value, given["fit"].span, frame) if "fit" in given else None
    settings: list[tuple[str, Setting]] = []
    for key, default in row.settings.items():
        if key in given:
            settings.append((key, _setting(name, key, default, given[key], frame)))
        elif isinstance(default, type):
            fail("E206", f"`{name}` needs `{key}`", frame.at(span), help=shown)
        else:
            settings.append((key, default))
    _check(name, dict(settings), given, span, frame)
    return Fit(name, tuple(settings)) if isinstance(row, Fitter) else Kept(Format(name, tuple(settings)), fit)


def _unknown(name: str, key: str, value: Given, known: Sequence[str], frame: Frame) -> None:
    near = closest(key, known)
    start = value.argument.span
    span = Span(start.source, start.start, start.start + len(key))
    fail("E204", f"`{name}` has no setting `{key}`", frame.at(span), edits=(Edit(span, near),) if near else (),
         help=f"did you mean `{near}`?" if near else f"it has {', '.join(known) or 'none'}")  # fmt: skip


def _setting(name: str, key: str, default: Setting | type, given: Given, frame: Frame) -> Setting:
    """A setting of the table's type; a whole number serves where a number is asked for."""
    wanted = default if isinstance(default, type) else type(default)
    value = given.value
    if wanted is float and is_number(value):
        return float(cast(float, value))
    if type(value) is wanted:
        words = CHOICES.get((name, key))
        if words is None or value in words:
            return cast(Setting, value)
        near = closest(str(value), words)
        fail("E305", f'`{key}` of `{name}` is {" or ".join(f"{w!r}" for w in words)}, not "{value}"'.replace("'", '"'),
             frame.at(given.span), help=f'did you mean "{near}"?' if near else "",
             edits=(Edit(given.span, f'"{near}"'),) if near else ())  # fmt: skip
    kinds = {bool: "`yes` or `no`", int: "a whole number", float: "a number", str: "a text"}
    fail("E305", f"`{key}` of `{name}` is {kinds[wanted]}, not {describe(value)}", frame.at(given.span))


def _check(name: str, settings: Mapping[str, Setting], given: Mapping[str, Given], span: Span, frame: Frame) -> None:
    """Numbers that no format can have."""
    positive = ("rank", "n", "m", "size", "rounds", "pairs", "block")
    least = {**dict.fromkeys(positive, 1), **dict.fromkeys(("group", "steps", "damp"), 0)}
    for key, value in settings.items():
        at = frame.at(given[key].span if key in given else span)
        if key in least and isinstance(value, int | float) and value < least[key]:
            fail("E305", f"`{key}` of `{name}` is {value}; it is at least {least[key]}", at)
        if key == "density" and isinstance(value, float) and not 0 < value <= 1:
            fail("E305", f"`density` of `{name}` is {value}; it lies above 0 and not above 1", at)
    if name == "nm" and settings["n"] > settings["m"]:  # type: ignore[operator]  # both are whole numbers
        fail("E305", f"`nm` keeps n of every m: {settings['n']} of {settings['m']}", frame.at(span))


# ---- values


def kept_of(value: Meaning, what: str, span: Span, frame: Frame) -> Kept | None:
    """A value as a format; None for `none`."""
    if value is NOTHING:
        return None
    if isinstance(value, Kept):
        return value
    if isinstance(value, FormatKind):
        needs = [n for n, v in value.settings.items() if isinstance(v, type)]
        fail("E206", f"`{value.name}` needs `{needs[0]}`", frame.at(span), help=f"{value.name}({', '.join(needs)})")
    names = ", ".join(FORMATS)
    fail("E305", f"`{what}` is a format or `none`, not {describe(value)}", frame.at(span), help=f"formats are {names}")


def fit_of(value: Meaning, span: Span, frame: Frame) -> Fit | None:
    """A value as a fitting procedure; None for `none`."""
    if value is NOTHING:
        return None
    if isinstance(value, Fit):
        return value
    names = ", ".join(FITTERS)
    fail("E305", f"`fit` is a fitting procedure or `none`, not {describe(value)}", frame.at(span),
         help=f"procedures are {names}")  # fmt: skip


def rounded(c: Call) -> Meaning:
    """`rounded(x, int8)`: every number replaced by the nearest that the format has; `none` leaves x."""
    x, given = c.tensor("x"), c.given["format"]
    kept = kept_of(given.value, "format", c.blame("format"), c.frame)
    if kept is None:
        return x
    row = FORMATS[kept.format.name]
    if not row.rounds:
        fail(
            "E305", f"`{row.name}` is another shape of weights, not a rounding of numbers", c.blame("format"),
            help=f"it stands in `param .. {{ format = {row.name}(..) }}`, or `weights = ..` of a linear map",
        )  # fmt: skip
    if kept.fit is not None:
        fail("E305", f"{kept.fit} fits weights; what is rounded as it comes is not fitted", c.blame("format"))
    if not x.type.dtype.floating or not x.type.shape:
        fail("E301", f"`rounded` takes reals with axes; `{c.shown('x')}` is {x.type}", c.at("x"), notes=c.made("x"))
    return c.emit(Rounded(format=kept.format), (x,), x.fields)
