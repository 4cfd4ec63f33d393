"""The package as a new user gets it: one wheel, one package, acyclic layers, quiet start."""

import ast
import graphlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import bn_vuln

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "bn_vuln").rglob("*.py"))

# Each package may import what stands below it here, and nothing above.
LAYERS = [
    "api",
    "reporting",
    "experiments",
    "auditing",
    "evaluation",
    "external",
    "training",
    "attacks",
    "models",
    "data",
    "records",
    "config",
    "runtime",
    "analysis",
    "errors version typing",
]


def imports_of(path):
    """The parts of bn_vuln that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "bn_vuln":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bn_vuln."):
            found.add(node.module.split(".")[1])
    return found


ORDER = {part: place for place, row in enumerate(LAYERS) for part in row.split()}


def part_of(path):
    return path.relative_to(ROOT / "bn_vuln").parts[0].removesuffix(".py")


def test_packages_import_only_what_lies_below_them():
    for path in SOURCES:
        part = part_of(path)
        if part not in ("__init__", "__main__"):
            assert {other for other in imports_of(path) - {part} if ORDER[other] <= ORDER[part]} == set(), path


def test_no_modules_import_each_other_in_a_circle():
    """Imports in the bodies of functions count too. `from package import module` needs the module alone."""
    sources = {path: ("bn_vuln", *path.relative_to(ROOT / "bn_vuln").parts) for path in SOURCES}
    sources |= {path: ("bn_vuln", "cli", path.name) for path in (ROOT / "cli").glob("*.py")}
    modules = {".".join(parts).removesuffix(".py").removesuffix(".__init__"): path for path, parts in sources.items()}
    imports = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bn_vuln"):
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                imports[name] |= {one if one in modules else node.module for one in full} - {name}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError with the circle


def test_every_package_has_its_layer():
    assert {part_of(path) for path in SOURCES} - {"__init__", "__main__"} == set(ORDER)


def test_only_function_bodies_import_tensorflow():
    for path in [*SOURCES, *(ROOT / "cli").glob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            heavy = {"tensorflow", "tensorflow_datasets", "jax", "keras", "cleverhans", "matplotlib", "joblib", "rich"}
            heavy |= {"pandas"}
            assert not {name.split(".")[0] for name in names} & heavy, path


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_tensorflow_starts_quietly_and_with_onednn():
    done = run(
        "import bn_vuln, os\nfrom bn_vuln.runtime import backend\ntf = backend.tensorflow()\n"
        "assert os.environ['TF_ENABLE_ONEDNN_OPTS'] == '1'\nprint(tf.reduce_sum(tf.ones(3)).numpy())"
    )
    assert (done.stdout, done.stderr) == ("3.0\n", "")


@pytest.mark.slow
def test_verbose_brings_the_start_up_messages_back():
    done = run("from bn_vuln.runtime import backend\nbackend.set_verbose(True)\nbackend.tensorflow()")
    assert "oneDNN" in done.stderr


@pytest.mark.slow
def test_a_number_of_devices_that_is_none_is_refused():
    done = run("from bn_vuln.runtime import backend\nbackend.tensorflow()", BNVULN_LOGICAL_CPUS="x")
    assert "UsageError: BNVULN_LOGICAL_CPUS: expected a number of devices, received 'x'" in done.stderr


@pytest.mark.slow
def test_determinism_starts_tensorflow_as_quietly():
    done = run("from bn_vuln.runtime import backend\nbackend.make_deterministic()\nprint(backend.is_deterministic())")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_onednn_stays_as_the_user_set_it():
    done = run("import bn_vuln, os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])", TF_ENABLE_ONEDNN_OPTS="0")
    assert done.stdout == "0\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the sources."""
    target = tmp_path_factory.mktemp("wheel")
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools packs whatever an earlier build left there
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", target, ROOT], capture_output=True, text=True, check=False, cwd=target)
    assert done.returncode == 0, done.stderr
    return next(target.glob("bnvuln-*.whl"))


def test_a_wheel_holds_one_package_with_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"bn_vuln"}
    shipped = {
        str(p.relative_to(ROOT)).replace("configs/", "bn_vuln/configs/", 1) for p in (ROOT / "configs").rglob("*.yaml")
    }
    shipped |= {f"bn_vuln/cli/{p.name}" for p in (ROOT / "cli").glob("*.py")}
    shipped |= {str(p.relative_to(ROOT)) for p in SOURCES}
    shipped |= {str(p.relative_to(ROOT)) for p in (ROOT / "bn_vuln").rglob("*.gz")}
    shipped |= {"bn_vuln/reporting/report.html.jinja", "bn_vuln/py.typed"}
    assert shipped <= set(names)
    assert any(name.endswith("NOTICE") for name in names)


def test_the_wheel_works_outside_the_checkout(wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    site = next(environment.glob("lib/python*/site-packages"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    # The dependencies are those of this environment; the package itself must come from the wheel.
    here = [p for p in sys.path if p.endswith("site-packages")]
    code = (
        f"import sys; sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}] + {here!r}\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "import bn_vuln; print(bn_vuln.__file__)\nfrom bn_vuln.cli.main import main\nmain(sys.argv[1:])"
    )
    arguments = ["train", "--limit", "500", "--hidden", "8", "--epochs", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [environment / "bin" / "python", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert (tmp_path / "run" / "model.keras").exists()


def test_no_public_function_has_the_name_of_a_package():
    """Python would put the package in its place as soon as that is imported."""
    assert set(bn_vuln.__all__).isdisjoint(path.stem for path in (ROOT / "bn_vuln").iterdir())
