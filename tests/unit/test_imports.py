"""Who may import whom, read from the sources, and a docstring on everything public."""

import ast
import inspect
import pydoc
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import rdi

ROOT = Path(rdi.__file__).parent
TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(ROOT.rglob("*.py"))

# From the bottom up, as src/rdi/README.md lays it out: a module imports from its own entry and from entries before it.
LAYERS = (
    ("errors",),
    ("text", "seeds", "memory", "signals", "failures", "binomial", "emulation", "deprecations", "packaged"),
    ("annotations", "confine", "mapped", "ranks"),
    ("locks",),
    ("checks", "config", "shared_layers", "sizing", "storage"),
    ("trust", "manifests"),
    ("records", "tracking", "pareto", "training_settings"),
    ("threats",),
    ("folders", "searching"),
    ("listing",),
    ("report",),
    ("logs",),
    ("data",),
    ("backbones",),
    ("exits",),
    ("thresholds",),
    ("banks", "gallery"),
    ("operators", "recomputing"),
    ("macs", "importing", "compaction_cost", "compiled", "streaming"),
    ("lean_exits",),
    ("compression",),
    ("certificates",),
    ("attacks", "corruptions"),
    ("defenses",),
    ("gates",),
    ("cpu_batches", "single_image"),
    ("adaptive", "evaluating", "evaluation", "optim", "averaging"),
    ("prediction_intervals", "curves", "held_out"),
    ("attacking", "direct", "training"),
    ("certifying",),
    ("exporting",),
    ("benchmarks", "health"),
    ("runs",),
    ("cli",),
)
# The two files at the very top only hand over: `import rdi` and `python -m rdi`.
FACADE = {"__init__.py", "__main__.py"}


def relative(file):
    return file.relative_to(ROOT).as_posix()


def module_name(file):
    parts = ["rdi", *file.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(file):
    """Dotted names that a file imports anywhere in it, submodules of rdi resolved."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} uses a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                path = ROOT.parent / Path(*full.split("."))
                is_module = path.with_suffix(".py").is_file() or path.is_dir()
                found.add(full if is_module else node.module)
    return found


def part(name):
    """rdi.attacks.base -> attacks."""
    return name.split(".")[1]


def layer(name):
    return next(index for index, names in enumerate(LAYERS) if part(name) in names)


def test_every_part_of_the_package_has_a_layer():
    on_disk = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert on_disk - {"__init__", "__main__"} <= {name for names in LAYERS for name in names}


def test_imports_point_downwards_only():
    upwards = [
        (relative(file), name)
        for file in FILES
        if relative(file) not in FACADE
        for name in imports(file)
        if name.startswith("rdi.") and part(name) != part(module_name(file)) and layer(name) >= layer(module_name(file))
    ]
    assert upwards == []


def test_modules_do_not_import_one_another_in_a_circle():
    names = {module_name(file): {n for n in imports(file) if n.startswith("rdi.")} for file in FILES}
    # a package counts for what its __init__ imports; a module need not wait for the package that it lies in
    graph = {name: {n for n in found if n in names and not name.startswith(f"{n}.")} for name, found in names.items()}
    del graph["rdi"]
    done = set()
    while ready := {name for name, needs in graph.items() if name not in done and needs <= done}:
        done |= ready
    assert set(graph) - done == set()


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("hydra", ("cli/", "config.py")),
        ("omegaconf", ("cli/", "config.py")),
        ("wandb", "tracking.py"),
        ("optuna", "searching.py"),
        ("pyautoattack", "attacks/autoattack.py"),
        ("onnx", "exporting/"),
        ("onnxruntime", ("exporting/precision.py", "exporting/runner.py")),
    ],
)
def test_packages_at_the_edge_are_imported_there_only(package, allowed):
    importing = [relative(f) for f in FILES if package in {name.split(".")[0] for name in imports(f)}]
    assert importing, f"nothing imports {package}: this test looks in the wrong place"
    assert [name for name in importing if not name.startswith(allowed)] == []


def test_nothing_of_the_python_interface_leads_to_the_command_line():
    """`rdi.Run` and `rdi.load` read run folders without Hydra; nothing pulls the command line in."""
    probe = (
        "import sys, rdi, rdi.training, rdi.attacking, rdi.adaptive, rdi.evaluating, rdi.tracking, rdi.importing\n"
        "import rdi.runs.attack, rdi.runs.beginning, rdi.runs.compressed\n"
        "assert all(getattr(rdi, name) for name in rdi.__all__)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('hydra', 'omegaconf', 'wandb') or 'rdi.cli' in m])"
    )
    assert run_python(probe) == "[]"


def test_reports_do_without_torch():
    probe = "import sys, rdi.report.tables, rdi.report.plots, rdi.pareto; print('torch' in sys.modules)"
    assert run_python(probe) == "False"


def test_what_takes_a_second_to_import_waits_until_it_is_needed():
    """Every command and every process of a sweep would wait for it."""
    probe = (
        "import sys, importlib, rdi.cli, rdi.data.digits\n"
        "for name in [*rdi.cli.COMMANDS]: importlib.import_module(f'rdi.cli.{name}' + '_' * (name == 'import'))\n"
        "rdi.data.digits.Digits(name='digits', calibration=10, size=8).load()\n"
        "heavy = ('scipy.stats', 'sklearn', 'wandb', 'optuna', 'onnx', 'pandas', 'IPython')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert run_python(probe) == "[]"


def test_composing_a_config_does_without_records_and_numpy():
    code = (
        "import sys, contextlib, io, rdi.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    rdi.cli.main(['train', '--cfg', 'job'])\n"
        "print([name for name in ('numpy', 'pydantic', 'torch', 'rdi.records') if name in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_from_python_no_warning_of_a_library_that_is_imported_is_seen():
    code = (
        "import warnings\nwarnings.simplefilter('error')\nimport rdi\n"
        "print(len([getattr(rdi, name) for name in rdi.__all__]) > 10)\n"
        "from rdi.data import decoding\nfrom rdi.backbones import libraries, resnet\n"
        "print(rdi.as_multi_exit is not None)"
    )
    assert run_python(code) == "True\nTrue"


def test_help_does_without_torch_and_hydra():
    probe = (
        "import sys, io, contextlib, rdi.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): rdi.cli.main(['--help'])\n"
        "print([m for m in ('torch', 'hydra', 'wandb') if m in sys.modules])"
    )
    assert run_python(probe) == "[]"


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_lazy_names_of_the_package_resolve():
    assert sorted(name for name in rdi.__all__ if getattr(rdi, name, None) is None) == []
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rdi.nonsense


def test_help_shows_every_public_name_with_its_types_and_what_it_does():
    page = pydoc.render_doc(rdi, renderer=pydoc.plaintext)
    for name in rdi.__all__:
        value = getattr(rdi, name)
        first = inspect.getdoc(value).splitlines()[0]
        assert first.endswith((".", ":"))
        if inspect.ismodule(value):
            assert f"    {name} (package)\n" in page
        else:
            assert re.search(rf"^    (class |)(rdi\S*\.)?{name}\b\(", page, re.MULTILINE), name
            assert first in page
        if inspect.isfunction(value):
            given = inspect.signature(value)
            assert given.return_annotation is not inspect.Signature.empty
            assert all(one.annotation is not inspect.Parameter.empty for one in given.parameters.values())
    assert re.search(
        r"load\(run: 'str \| Path', device: 'str' = 'auto', \*, trust: 'Sequence\[str\]' = \(\)\) -> ", page
    )


def undocumented(body, prefix):
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_everything_public_has_a_docstring(file):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "the module itself"
    assert list(undocumented(tree.body, "")) == []


def test_no_test_imports_another():
    """What several need is in tests/helpers: a test file may be renamed, split or deleted."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[0] == "conftest" or name.startswith("test_")], path
