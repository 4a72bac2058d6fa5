"""The tree into the package: the mapping is complete, bare names are not installed, links point home."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
MAPPED = SETUPTOOLS["package-dir"]


def folder(package: str) -> Path:
    """Where the mapping puts a package: `tfc.grammar.x` lies in grammar/x."""
    for prefix, home in sorted(MAPPED.items(), key=lambda kv: -len(kv[0])):
        if package == prefix or package.startswith(prefix + "."):
            return ROOT.joinpath(home, *package[len(prefix) + 1 :].split(".")) if package != prefix else ROOT / home
    return ROOT.joinpath(*package.split("."))


def on_disk() -> set[str]:
    """Every folder that holds Python files, under the name it installs as."""
    found = set()
    homes = {ROOT / home: prefix for prefix, home in MAPPED.items()} | {ROOT / "tfc": "tfc"}
    for home, prefix in homes.items():
        for init in home.rglob("*.py"):  # does not follow the links
            parts = init.parent.relative_to(home).parts
            if "__pycache__" not in parts and not (prefix == "tfc" and parts and (home / parts[0]).is_symlink()):
                found.add(".".join((prefix, *parts)))
    return found


def test_the_list_of_packages_is_complete():
    assert sorted(SETUPTOOLS["packages"]) == sorted(on_disk())


def test_every_package_has_an_init():
    lacking = [p for p in SETUPTOOLS["packages"] if not (folder(p) / "__init__.py").is_file()]
    assert lacking == []


@pytest.mark.parametrize("name", ["grammar", "passes", "backends"])
def test_links_point_home(name):
    """The links give checkers and editors a path; the mapping alone installs."""
    link = ROOT / "tfc" / name
    assert link.is_symlink() and link.resolve() == ROOT / name


def test_every_import_is_declared():
    """What tfc imports is in its dependencies, or in an extra and imported inside a function."""
    names = {"jax": "jax", "jaxlib": "jaxlib", "numpy": "numpy", "lark": "lark", "click": "click", "rich": "rich"}
    names |= {"safetensors": "safetensors", "platformdirs": "platformdirs"}
    declared = {d.split(">")[0].split("[")[0] for d in PROJECT["project"]["dependencies"]}
    assert set(names.values()) == declared
    extras = {"tokenizers", "hypothesis", "chex", "flatbuffers", "torch", "transformers", "tokamax", "pygls"}
    optional = " ".join(d for extra in PROJECT["project"]["optional-dependencies"].values() for d in extra)
    assert all(name in optional for name in extras)
    for package in SETUPTOOLS["packages"]:
        for file in folder(package).glob("*.py"):
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                modules = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                for top in (m.split(".")[0] for m in modules):
                    if top in sys.stdlib_module_names or top == "tfc" or top in names:
                        continue
                    where = f"{file.relative_to(ROOT)} imports {top}"
                    top = "pygls" if top == "lsprotocol" else top  # its types of the protocol
                    assert top in extras, f"{where}, which pyproject.toml does not declare"
                    inside = node not in tree.body or package.startswith(("tfc.testing", "tfc.bench", "tfc.lsp"))
                    assert inside, f"{where} at its top; it belongs to an extra"


def test_dependency_floors_are_tested():
    """pyproject's oldest JAX is the one that .ci/run installs, and that `tfc doctor` checks."""
    from tfc.doctor import JAX_RANGE

    (jax,) = (d for d in PROJECT["project"]["dependencies"] if d.startswith("jax>"))
    low, high = (".".join(map(str, v)) for v in JAX_RANGE)
    assert jax == f"jax>={low},<{high}"
    assert f"oldest_jax={low}\n" in (ROOT / ".ci" / "run").read_text()


def test_the_wheel_installs_tfc_alone(tmp_path):
    """Built from a copy of what git would check out (links included), installed elsewhere, imported from there."""
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("building takes setuptools and pip: pip install 'tfc[test]'")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tfc", "grammar", "passes", "backends", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-R", "-P", str(ROOT / name), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, source], check=True, timeout=240
    )
    (wheel,) = tmp_path.glob("tfc-*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    info = f"tfc-{PROJECT['project']['version']}.dist-info"
    assert {f.split("/")[0] for f in files} == {"tfc", info}
    assert wheel.name.endswith("-py3-none-any.whl")

    expected = {"tfc/py.typed"}
    for package in SETUPTOOLS["packages"]:
        into = package.replace(".", "/")
        expected |= {f"{into}/{f.name}" for f in folder(package).glob("*.py")}
    expected |= {f"tfc/grammar/{f.name}" for f in (ROOT / "grammar").glob("*.lark")}
    expected |= {f"tfc/grammar/prelude/{f.name}" for f in (ROOT / "grammar" / "prelude").glob("*.tfm")}
    expected |= {f"tfc/backends/pallas_gpu/{f.name}" for f in folder("tfc.backends.pallas_gpu").glob("*.jsonl")}
    assert {f for f in files if f.startswith("tfc/")} == expected
    assert any(f.endswith(".lark") for f in expected) and any(f.endswith(".tfm") for f in expected)

    home = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", home, wheel], check=True, timeout=120)
    assert {f.name for f in home.iterdir()} - {"bin"} == {"tfc", info}
    code = (
        "import tfc.grammar, tfc.passes, tfc.cli, importlib.util as u; print(tfc.cli.__file__, u.find_spec('passes'))"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(home), *site_packages()]}; {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(home / "tfc" / "cli.py"), "None"]


def site_packages() -> list[str]:
    """The environment's packages, without the path files by which an editable install would come in."""
    return [p for p in sys.path if p.endswith("site-packages")]
