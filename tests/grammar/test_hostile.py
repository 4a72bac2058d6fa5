"""Files that mean harm, or that no person wrote: each ends in a diagnostic of its own, soon, in few words."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tfc.diagnostics import Diagnostic, TfcError
from tfc.front import front
from tfc.grammar.lowering.session import LIMITS, is_library

SECONDS = 1.0
"""CPU time for a file, whatever it holds."""
HEAD = "model m(tokens: int[B, T]) {\n  embed word = embed { vocab = 16   width = 8 }\n  x = word(tokens)\n"
N = 200_000


def top(items: str, result: str = "x") -> str:
    """A file with these items, and a model after them."""
    return f"tfm 1\n{items}\n{HEAD}  return {result}\n}}\n"


def body(statements: str) -> str:
    return f"tfm 1\n{HEAD}{statements}\n}}\n"


def allowed() -> float:
    """SECONDS, longer on a machine that is slower or busy: one at rest does this loop in 25 ms."""
    times = []
    for _ in range(5):
        began, seen = time.process_time(), dict[int, object]()
        for i in range(200_000):
            seen[i & 255] = (i, seen.get(i & 127))
        times.append(time.process_time() - began)
    return SECONDS * max(1.0, sorted(times)[2] / 0.025)


def diagnose(what: str | Path) -> tuple[Diagnostic, ...]:
    """All that is said of a text or a file. Held to the second, and to places within the text."""
    began = time.process_time()
    try:
        found = front(what).warnings
    except TfcError as error:
        found = error.diagnostics
    spent = time.process_time() - began
    assert spent < SECONDS or spent < allowed(), f"{spent:.2f} s"
    for d in found:
        assert len(str(d)) < 6_000 and len(str(d.to_json())) < 6_000
        for span in [d.span] if d.span else []:
            assert 0 <= span.start <= span.end <= len(span.source.text) and not is_library(span.source)
    assert len("\n".join(map(str, found))) < 30_000
    return found


def lines(line: str, count: int) -> str:
    return "\n".join(line.format(i=i, j=i - 1) for i in range(1, count + 1))


# ---- numbers, lists, loops, calls

DOUBLED = "block b0(x) { return rms(x) }\n" + lines("block b{i}(x) {{ return b{j}@a(b{j}@b(x)) }}", 40)
DERIVED = "attention a0 { heads = 2 }\n" + lines("attention a{i} = a{j} {{ mask = causal }}", 2_000)

COMPILING = {
    "power of power": (top("let x = 2 ^ 10 ^ 9"), "E501"),
    "power of powers": (top("let x = 9 ^ 9 ^ 9 ^ 9"), "E501"),
    "power by steps": (top("let a = 2 ^ 62, b = a * a, c = b * b"), "E501"),
    "power of a power": (top("let x = (2 ^ 1000) ^ 1000"), "E501"),
    "real power": (top("let x = 10.0 ^ 400"), "E501"),
    "doubled numbers": (top("let b0 = 3\n" + lines("let b{i} = b{j} * b{j}", 40)), "E501"),
    "digits": (top("let a = " + "9" * N), "E006"),
    "digits after the point": (top("let a = 0." + "9" * N), "E006"),
    "digits of the exponent": (top("let a = 1e" + "9" * N), "E006"),
    "digits apart": (top("let a = " + "1_" * 100_000 + "1"), "E006"),
    "million digits": (top("let a = " + "9" * 1_000_000), "E003"),
    "version of many digits": (f"tfm {'1' * N}\n", "E102"),
    "list times": (top("let x = [1] * 10 ^ 9"), "E502"),
    "times list": (top("let x = 10 ^ 9 * [1]"), "E502"),
    "doubled lists": (top("let b0 = [1]\n" + lines("let b{i} = b{j} + b{j}", 40)), "E502"),
    "written list": (top("let a = [" + "1, " * 15_000 + "]"), "E502"),
    "turns": (body("  repeat 10 ^ 9 as l { x = rms(x) }\n  return x"), "E502"),
    "turns within turns": (
        body("  " + "".join(f"repeat 100_000 as {n} {{ " for n in "abcde") + "x = rms(x)" + " }" * 5 + "\n  return x"),
        "E502",
    ),
    "turns over a list": (body("  repeat [rms, gelu] * 5_000 as f { x = f(x) }\n  return x"), "E502"),
    "turns over lists": (
        body("repeat [rms, gelu] as a { " * 20 + " x = rms(x) " + " }" * 20 + " return x"), "E502",
    ),
    "empty turns over lists": (
        body("repeat [1, 2] * 5_000 as a { repeat [1, 2] * 5_000 as b { y = 1 } }\n  return x"), "E502",
    ),
    "doubled calls": (top(DOUBLED, "b40(x)"), "E502"),
    "doubled formulas": (
        top("score b0 = s + 1\n" + lines("score b{i} = b{j} + b{j}", 40), "attention(x, heads = 2, score = b40)"),
        "E502",
    ),
    "calls within calls": (
        top("block b0(x) { return rms(x) }\n" + lines("block b{i}(x) {{ return b{j}(x) }}", 300), "b300(x)"), "E504",
    ),
    "values of values": (top("let a0 = 1\n" + lines("let a{i} = a{j} + 1", 2_000)), ""),
    "values of later values": (top(lines("let a{j} = a{i} + 1", 4_000) + "\nlet a4000 = 2"), "E504"),
    "derivations": (top(DERIVED, "a2000(x)"), ""),
    "huge parameter": (body("  param w[2 ^ 40, 2 ^ 10]\n  return x + sum(sum(w))"), "E502"),
    "huge table": (body("  param w[h: 1_000, g: 1_000] = h * g\n  return x * sum(sum(w))"), "E502"),
    "huge width": (body("  return linear(x, 10 ^ 15)"), "E502"),
    "many channels": (body("  return split(linear(x, 10 ^ 9), 3)"), "E402"),
    "names of many turns": (
        body("  repeat 100_000 as l { x = rms(x) }\n  return x")
        + 'names hf {\n  "a.{l}" = l.rms.scale\n  "b" = word.weight\n}\n',
        "E502",
    ),
    "arithmetic in a name": (body("  return x") + f'names hf {{ "a.{{{"2 * " * 9_000}l}}" = word.weight }}\n', "E612"),
    "indices": (
        body("  y[b, t, c] = sum[" + ", ".join(f"j{i}" for i in range(2_000)) + "](x[b, t, c])\n  return y"), "E406",
    ),
}  # fmt: skip


# ---- brackets, length, characters

BRACKETS = {
    "many (": "(" * N, "many [": "[" * N, "many {": "{" * N, "all kinds": "([{" * (N // 3),
    "alternating": "(]" * (N // 2),
    "a few hundred": "(" * 300 + "1" + ")" * 300,
}  # fmt: skip
WRITING = {
    **{f"brackets: {name}": (top(f"let x = {text}"), "E005") for name, text in BRACKETS.items()},
    "balanced": (top("let x = " + "(" * N + "1" + ")" * N), "E003"),
    "closing )": (top("let x = " + ")" * 30_000), "E107"),
    "closing ]": (top("let x = " + "]" * 30_000), "E107"),
    "closing }": (top("let x = " + "}" * 30_000), "E107"),
    "closing all": (top("let x = " + ")]}" * 10_000), "E107"),
    "closing far too many": (top("let x = " + ")" * N), "E003"),
    "unclosed lines": (top("let x = (\n" * 9_000), "E107"),
    "unclosed bodies": (top("f x {\n" * 9_000), "E107"),
    "pairs": (top("let x = " + "()" * 15_000), "E110"),
    "signs": (top("let a = " + "-" * 30_000 + "1"), "E005"),
    "nots": (top("let a = " + "not " * 30_000 + "yes"), "E005"),
    "powers": (top("let a = " + "2 ^ " * 15_000 + "1"), "E005"),
    "points": (top("let a = b" + ".a" * 15_000), "E005"),
    "labels": (top("let a = b" + "@a" * 15_000), "E005"),
    "subscripts": (top("let a = b" + "[1]" * 10_000), "E005"),
    "calls": (top("let a = b" + "()" * 15_000), "E005"),
    "sums": (top("let a = 1" + " + 1" * 15_000), "E005"),
    "comparisons": (body("  return if(1" + " < 1" * 8_000 + ", x, x)"), ""),
    "10 MB": (top("# " + "x" * 10_000_000), "E003"),
    "many words": (top("let a = 1\n" * 20_000), "E003"),
    "long comment": (top("# " + "x" * 250_000), ""),
    "long name": (top("let " + "a" * 100_000 + " = 1"), ""),
    "long unknown name": (top("let b = " + "a" * 100_000), "E201"),
    "long attribute": (top("attention look { " + "a" * 100_000 + " = 3 }"), "E204"),
    "long kind": (top("a" * 100_000 + " look { heads = 3 }"), "E205"),
    "long text": (body('  return x + "' + "{" * 100_000 + '"'), "E305"),
    "long line": (top("let a = " + "; ".join(["1"] * 15_000)), "E104"),
    "long arguments": (body("  return rms(" + ", ".join(f"a{i} = x" for i in range(5_000)) + ")"), "E204"),
    "long documentation": (top('"a"\n' * 15_000 + "let a = 1"), ""),
    "nothing": ("\n", "E101"),
    "only `tfm`": ("tfm\n", "E101"),
    "only `tfm 1`": ("tfm 1\n", "E210"),
    "NUL": (top("let a = 3\0"), "E004"),
    "NULs": ("\0" * 1_000 + "\n", "E004"),
    "bell": (top("let a = 3\x07"), "E004"),
    "escape": (top("# \x1b[31mred"), "E004"),
    "right to left": (top("let a = 3 # \u202e cba"), "E004"),
    "isolate in a string": (top('"\u2066"\nlet a = 3'), "E004"),
    "zero width space": (top("let a\u200b = 3"), "E004"),
    "zero width joiner": (top("let a\u200d = 3"), "E004"),
    "soft hyphen": (top("let a\u00adb = 3"), "E004"),
    "tag": (top("# \U000e0041"), "E004"),
    "filler": (top("let \u3164 = 3"), "E004"),
    "line separator": (top("# a\u2028let a = 3"), "E004"),
    "mark within": (top("\ufefflet a = 3"), "E004"),
    "mark at the start": ("\ufeff" + top(""), ""),
    "lone surrogate": (top('"\ud800"\nlet a = 3'), "E004"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "code"), [pytest.param(*case, id=name) for name, case in COMPILING.items()])
def test_what_compiles_into_too_much(text: str, code: str) -> None:
    found = diagnose(text)
    assert [d.code for d in found][:1] == ([code] if code else []), "\n".join(map(str, found))
    assert code != "E502" or len(found) <= 2


@pytest.mark.parametrize(("text", "code"), [pytest.param(*case, id=name) for name, case in WRITING.items()])
def test_what_nobody_writes(text: str, code: str) -> None:
    found = diagnose(text)
    assert [d.code for d in found][:1] == ([code] if code else []), "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("line", "most"),
    [
        ("let a{i} = 4k", 10),
        ("mask m{i} = k <= <", 10),
        ("§", 10),
        ('"a', 10),
        ("let a{i} = 'x'", 10),
        ("modle m{i}(x) {{ return x }}", 10),
        ("attention look{i} {{", 10),
        ("let a{i} = zz{i}", 50),
        ("let a = 1", 50),
        ("attention a{i} {{ haeds = 2 }}", 50),
        ("mask m{i} = z{i}", 50),
    ],
)
def test_ten_thousand_errors(line: str, most: int) -> None:
    """As many as a person reads: ten of syntax, fifty of meaning. (Ten thousand lines are more than the limit of words
    for some; then it is the limit that is named.)"""
    found = diagnose(top(lines(line, 10_000)))
    assert len(found) in (1, most) and (len(found) == most or found[0].code == "E003")
    found = diagnose(top(lines(line, 3_000)))
    assert len(found) == most


def test_ten_thousand_errors_in_a_body() -> None:
    assert LIMITS["complaints"] == 50
    assert len(diagnose(body(lines("  x{i} = zz{i}", 9_000) + "\n  return x"))) == 50
    assert len(diagnose(body(lines("  x = zz", 9_000) + "\n  return x"))) == 50


@pytest.mark.parametrize("ends", [["\n"], ["\r\n"], ["\r"], ["\r\n", "\n", "\r"]])
def test_line_ends_mean_the_same(ends: list[str]) -> None:
    """CR, LF and CRLF each end a line, in one file, too: places count lines as editors do."""
    text = top("let a = 1 # a remark", "x\n  + zz").splitlines()
    (found,) = diagnose("".join(line + ends[i % len(ends)] for i, line in enumerate(text)) + "\n")
    assert found.span is not None and (found.span.line, found.span.column) == (7, 5)


@pytest.mark.parametrize(
    ("name", "says", "instead"),
    [
        ("h\u0430t", "U+0430 (cyrillic small letter a)", "hat"),
        ("\u0430", "U+0430 (cyrillic small letter a)", "a"),
        ("\u0422otal", "U+0422 (cyrillic capital letter te)", "Total"),
        ("\u03b1", "U+03B1 (greek small letter alpha)", "alpha"),
        ("\u03bb_1", "U+03BB (greek small letter lamda)", "lambda_1"),
        ("\uff57idth", "U+FF57 (fullwidth latin small letter w)", "width"),
        ("caf\u00e9", "U+00E9 (latin small letter e with acute)", "cafe"),
        ("gr\u00f6\u00dfe", "U+00F6 (latin small letter o with diaeresis)", None),
        ("\u540d", "U+540D (cjk unified ideograph-540d)", None),
    ],
)
def test_a_letter_that_is_not_ours_is_named(name: str, says: str, instead: str | None) -> None:
    text = top(f"let {name} = 3")
    (found,) = diagnose(text)
    assert found.code == "E103" and says in found.message
    assert [e.text for e in found.edits] == ([instead] if instead else [])
    if instead:
        (edit,) = found.edits
        assert diagnose(text[: edit.span.start] + edit.text + text[edit.span.end :]) == ()


def test_raised_digits_are_a_power() -> None:
    (found,) = diagnose(body("  return x\u00b2"))
    assert [e.text for e in found.edits] == ["x ^ 2"]


# ---- files


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def importing(folder: Path, written: str) -> tuple[Diagnostic, ...]:
    escaped = written.replace("\\", "\\\\").replace('"', '\\"')
    return diagnose(write(folder, "main.tfm", top(f'import "{escaped}" as other')))


def test_files_that_import_each_other(tmp_path: Path) -> None:
    write(tmp_path, "a.tfm", 'tfm 1\nimport "b.tfm" as b\n')
    write(tmp_path, "b.tfm", 'tfm 1\nimport "c.tfm" as c\n')
    write(tmp_path, "c.tfm", 'tfm 1\nimport "a.tfm" as a\n')
    found = importing(tmp_path, "a.tfm")
    assert {d.code for d in found} == {"E220"}
    assert any("a.tfm -> b.tfm -> c.tfm -> a.tfm" in d.message for d in found)
    write(tmp_path, "d.tfm", 'tfm 1\nimport "d.tfm" as d\n')
    assert any("d.tfm -> d.tfm" in d.message for d in importing(tmp_path, "d.tfm"))


def test_a_file_that_imports_itself(tmp_path: Path) -> None:
    found = importing(tmp_path, "main.tfm")
    assert found and {d.code for d in found} <= {"E220", "E210"}


def test_imports_as_a_tree_are_read_once(tmp_path: Path) -> None:
    """Each file imports the next one twice: 2 ^ 15 ways down, 15 files."""
    for i in range(15):
        write(tmp_path, f"f{i}.tfm", f'tfm 1\nimport "f{i + 1}.tfm" as a\nimport "f{i + 1}.tfm" as b\nlet x = 1\n')
    write(tmp_path, "f15.tfm", "tfm 1\nlet x = 1\n")
    assert importing(tmp_path, "f0.tfm") == ()


@pytest.mark.parametrize(
    "written",
    ["../outside.tfm", "a/../../outside.tfm", "/etc/passwd", "\\outside.tfm", "C:\\x.tfm", "~/x.tfm", "link.tfm",
     "linked/outside.tfm", "loop.tfm", "folder", ".", "", "gone.tfm", "a" * 5_000, "a/" * 3_000 + "b", "fifo.tfm",
     "/dev/zero", "socket.tfm", "linked_fifo.tfm", "x.tfm\n"],
)  # fmt: skip
def test_imports_that_lead_elsewhere(tmp_path: Path, written: str) -> None:
    folder = tmp_path / "inside"
    (folder / "folder").mkdir(parents=True)
    write(tmp_path, "outside.tfm", "tfm 1\nlet a = 1\n")
    (folder / "link.tfm").symlink_to(tmp_path / "outside.tfm")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop.tfm").symlink_to(folder / "loop.tfm")
    os.mkfifo(folder / "fifo.tfm")
    (folder / "linked_fifo.tfm").symlink_to(folder / "fifo.tfm")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(folder, os.O_RDONLY)  # the address of a socket is short
        try:
            server.bind(f"/proc/self/fd/{here}/socket.tfm" if sys.platform == "linux" else str(folder / "socket.tfm"))
        finally:
            os.close(here)
        found = importing(folder, written.replace("\n", "\\n") if "\n" in written else written)
    assert [d.code for d in found] == ["E220"], found
    assert found[0].span is not None and found[0].span.line == 2


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes(range(256)) * 10, "E002"),
        ("tfm 1\nlet a = 1\n".encode("utf-16"), "E002"),
        (b"\xff\xfe\x00", "E002"),
        (b'tfm 1\nlet a = "\xed\xa0\x80"\n', "E002"),
        (b"tfm 1 # \xc0\xaf\n", "E002"),
        (b"\x7fELF\x02\x01\x01\x00", "E004"),
        (b" " * 10_000_000, "E003"),
        (b"tfm 1\nlet a = \n", "E111"),
        (b"", "E101"),
    ],
)
def test_other_files_that_are_not_texts(tmp_path: Path, data: bytes, code: str) -> None:
    path = write(tmp_path, "other.tfm", data)
    assert [d.code for d in diagnose(path)][:1] == [code]
    found = importing(tmp_path, "other.tfm")
    assert {d.code for d in found} == {code, "E220"}


# ---- the command


def command(*words: str | Path, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tfc.cli", *map(str, words)], capture_output=True, text=True, timeout=timeout
    )


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    """A pipe that nobody writes to keeps nobody waiting; a device without end is read as far as the limit."""
    os.mkfifo(tmp_path / "pipe.tfm")
    (tmp_path / "loop.tfm").symlink_to(tmp_path / "loop.tfm")
    paths = [tmp_path, tmp_path / "gone.tfm", tmp_path / "pipe.tfm", tmp_path / "loop.tfm", "a" * 5_000, ""]
    devices = [p for p in ("/dev/null", "/dev/zero", "/dev/urandom") if Path(p).exists()]
    began = time.perf_counter()
    done = command("check", *paths, *devices)
    assert time.perf_counter() - began < 10
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.count("error[") == len(paths) + len(devices)
    assert "nobody writes to" in done.stdout and "is a folder" in done.stdout and "larger than" in done.stdout


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """`tfc check <(command)`, whose command takes its time."""
    pipe = tmp_path / "pipe.tfm"
    os.mkfifo(pipe)
    late = f"exec 3> {pipe}; sleep 0.5; cat >&3"
    with subprocess.Popen(["sh", "-c", late], stdin=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        writer.stdin.write(top("let a = 1"))
        writer.stdin.close()
        done = command("check", pipe)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("make", [lambda: "§" * 100_000, lambda: "let a = zz\n" * 9_000, lambda: "x" * 250_000])
def test_what_is_printed_is_bounded(tmp_path: Path, make: Callable[[], str]) -> None:
    path = write(tmp_path, "bad.tfm", f"tfm 1\n{make()}\n")
    done = command("check", path)
    assert done.returncode == 1 and done.stderr == "" and 0 < len(done.stdout) < 30_000
