"""The house rules that a reader relies on, kept by walking the syntax tree of every file.

Arrows point one way (launch -> train -> model and data), each idea lives in its one place, and nothing can run code
that came with the data. Below, each rule also meets an offender, so that none of them can pass by finding nothing.
"""

import ast
import graphlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "model": set(),
    "data": set(),
    "train": {"model", "data"},
    "launch": {"train", "model", "data"},
}
SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for package in (*MAY_IMPORT, "tests")
    for path in sorted((ROOT / package).rglob("*.py"))
}

Rule = Callable[[str, ast.Module], Iterator[tuple[int, str]]]


def package_of(path: str) -> str:
    return PurePosixPath(path).parts[0]


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The dotted names that import statements reach, `from a import b` giving `a.b` (ruff refuses relative ones)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name: str, modules: set[str]) -> bool:
    """Whether a dotted name is one of these modules or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def imports_point_one_way(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    package = package_of(path)
    forbidden = (set(MAY_IMPORT) | {"tests"}) - {package} - MAY_IMPORT[package]
    for line, name in imports(tree):
        if within(name, forbidden):
            yield line, f"{package}/ may not import {name}: arrows point launch -> train -> model and data"


def package_files_hold_a_docstring_only(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if path.endswith("/__init__.py"):
        for statement in tree.body[ast.get_docstring(tree) is not None :]:
            yield statement.lineno, "__init__.py holds a docstring and nothing else, so that each name has one address"


def every_file_says_what_it_is_for(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if not ast.get_docstring(tree):
        yield 1, "a file begins with a docstring that says what it is for"


def our_imports_stand_at_the_top(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for line, name in imports(function):
                if within(name, set(MAY_IMPORT)):
                    yield line, f"{name} is imported inside a function, which hides an arrow; import it at the top"


def nothing_runs_foreign_code(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    why = "could run code that came with a file; use JSON, safetensors or plain numpy"
    for line, name in imports(tree):
        if within(name, {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "os.system", "os.popen"}):
            yield line, f"{name} {why}"
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" | "__import__" as name)):
                yield node.lineno, f"{name}() {why}"
            case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen" as name):
                yield node.lineno, f"os.{name} {why}"
            case ast.keyword(arg="shell" | "allow_pickle" as name) if not is_false(node.value):
                yield node.value.lineno, f"{name}= {why}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="load"), keywords=keywords):
                if "allow_pickle" not in {keyword.arg for keyword in keywords}:
                    yield node.lineno, f"np.load() without allow_pickle=False {why}"


def nothing_opens_a_connection(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    why = "could reach the network; only the extras that a user names do, and JAX between the hosts of a run"
    for line, name in imports(tree):
        if within(name, {"urllib", "http", "ftplib", "smtplib", "ssl", "socketserver", "requests", "httpx"}):
            yield line, f"{name} {why}"
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="socket"), attr=name) if name != "gethostname":
                yield node.lineno, f"socket.{name} {why}"


def is_false(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def mesh_axes_are_named_in_two_files(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if path not in {"model/sharding.py", "train/mesh.py"}:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in {"fsdp", "tensor", "context"}:
                yield node.lineno, f"only model/sharding.py and train/mesh.py name mesh axes, not {node.value!r} here"


def shard_map_stays_on_its_islands(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if path != "model/sharding.py":
        for node in ast.walk(tree):
            if (isinstance(node, ast.Name) and node.id == "shard_map") or (
                isinstance(node, ast.Attribute) and node.attr == "shard_map"
            ):
                yield node.lineno, "elsewhere than in model/sharding.py it is on_each_device(), or constrain()"


def flax_stays_in_the_model(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if package_of(path) != "model" and path != "train/state.py":
        for line, name in imports(tree):
            if within(name, {"flax"}):
                yield line, f"{name}: only model/ and train/state.py know Flax; the rest sees plain pytrees"


def data_knows_no_jax(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if package_of(path) == "data":
        for line, name in imports(tree):
            if within(name, {"jax", "flax", "optax", "orbax"}):
                yield line, f"{name}: data/ gives numpy arrays, and train/ puts them on devices"


def the_model_touches_no_files_or_clocks(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if package_of(path) == "model":
        for line, name in imports(tree):
            if within(name, {"os", "pathlib", "io", "etils", "time", "datetime", "random", "subprocess"}):
                yield line, f"{name}: model/ is pure functions of parameters and batches"


def no_second_framework(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for line, name in imports(tree):
        if within(name, {"torch", "tensorflow", "keras", "transformers"}):
            yield line, f"{name}: nothing at run time needs a second framework; tests compare with them"


# Each rule with an offender: a path where the line would stand, and the line.
RULES: list[tuple[Rule, str, str]] = [
    (imports_point_one_way, "model/layers.py", "from data import tokenizers"),
    (imports_point_one_way, "data/loader.py", "import model.block"),
    (imports_point_one_way, "train/step.py", "if True:\n    from launch.cli import main"),
    (package_files_hold_a_docstring_only, "model/__init__.py", "'''Models.'''\nfrom model.block import Block"),
    (every_file_says_what_it_is_for, "train/step.py", "import jax"),
    (our_imports_stand_at_the_top, "train/step.py", "def f():\n    from model import block"),
    (nothing_runs_foreign_code, "data/sources.py", "import pickle"),
    (nothing_runs_foreign_code, "data/sources.py", "from os import system"),
    (nothing_runs_foreign_code, "data/sources.py", "value = eval(text)"),
    (nothing_runs_foreign_code, "data/sources.py", "os.system(text)"),
    (nothing_runs_foreign_code, "data/sources.py", "numpy.load(path, allow_pickle=True)"),
    (nothing_runs_foreign_code, "data/sources.py", "np.load(path, mmap_mode='r')"),
    (nothing_runs_foreign_code, "launch/cli.py", "subprocess.run(text, shell=flag)"),
    (nothing_opens_a_connection, "data/copies.py", "from urllib.request import urlopen"),
    (nothing_opens_a_connection, "train/cluster.py", "socket.create_connection(address)"),
    (mesh_axes_are_named_in_two_files, "train/step.py", "spec = P('fsdp')"),
    (shard_map_stays_on_its_islands, "model/attention.py", "jax.shard_map(f)"),
    (flax_stays_in_the_model, "train/step.py", "from flax import nnx"),
    (data_knows_no_jax, "data/loader.py", "import jax.numpy as jnp"),
    (the_model_touches_no_files_or_clocks, "model/decode.py", "from time import monotonic"),
    (no_second_framework, "train/export.py", "def f():\n    import torch"),
]


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _, _ in RULES), ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule):
    broken = [
        f"{path}:{line}: {sentence}"
        for path, tree in SOURCES.items()
        if package_of(path) in MAY_IMPORT or rule is every_file_says_what_it_is_for
        for line, sentence in rule(path, tree)
    ]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(("rule", "path", "source"), RULES, ids=lambda value: getattr(value, "__name__", None))
def test_the_rule_finds_an_offender(rule: Rule, path: str, source: str):
    assert list(rule(path, ast.parse(source)))


def find_cycle(sources: dict[str, ast.Module]) -> list[str] | None:
    modules = {module_name(path) for path in sources}
    imported = {
        module_name(path): {name for _, name in imports(tree)}
        for path, tree in sources.items()
        if not path.endswith("/__init__.py")
    }
    graph = {
        module: {other for other in modules - {module} if any(within(name, {other}) for name in names)}
        for module, names in imported.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_no_file_imports_itself_through_others():
    cycle = find_cycle({path: tree for path, tree in SOURCES.items() if package_of(path) in MAY_IMPORT})
    assert cycle is None, f"these files import each other in a circle: {' -> '.join(cycle)}"


def test_a_circle_of_imports_is_found():
    circle = {"model/a.py": ast.parse("from model.b import f"), "model/b.py": ast.parse("import model.a")}
    assert find_cycle(circle) is not None
    assert find_cycle({"model/a.py": circle["model/a.py"], "model/b.py": ast.parse("import jax")}) is None
