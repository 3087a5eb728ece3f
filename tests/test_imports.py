"""The shape of the house: imports go down only, and the library prints nothing and reads no environment at import."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY, TOOLS, L2 = "persona_vectors", ("activation_steer", "lora_utils", "judge"), ("eval", "data_generation")
SANCTIONED = {("extract_persona_lora", "training"), ("eval.demo_steps", "generate_vec")}
SANCTIONED |= {("eval.demo_finetuning", "training"), ("eval.demo_weights", "extract_persona_lora")}
SANCTIONED |= {("eval.demo_weights", "eval_lora_persona")}
"""A LoRA persona is two trainings; the demo is the published commands themselves, one after the other."""

SOURCES = sorted(
    [
        *ROOT.glob("*.py"),
        *ROOT.glob("persona_vectors/*.py"),
        *ROOT.glob("experiments/*.py"),
        *(file for folder in L2 for file in ROOT.glob(f"{folder}/**/*.py")),
    ]
)
OURS = {LIBRARY, *L2, *(path.stem for path in ROOT.glob("*.py"))}


def level(module: str) -> int:
    top = module.split(".")[0]
    return 0 if top == LIBRARY else 1 if top in TOOLS else 2 if top in L2 else 3


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every absolute import, inside functions too; relative imports are not used here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import on line {node.lineno}"
            yield node.module or ""


def violations(module: str, tree: ast.AST) -> list[str]:
    """Imports that go up, or sideways between commands."""
    wrong = []
    for other in imported_modules(tree):
        top = other.split(".")[0]
        if top not in OURS or (module, top) in SANCTIONED:
            continue
        sideways = level(module) == level(other) == 3 and top != module
        if level(other) > level(module) or sideways:
            wrong.append(f"{module} (L{level(module)}) imports {other} (L{level(other)})")
    return wrong


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: everything outside of functions, but their defaults."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)]
        elif not isinstance(node, ast.Lambda):
            pending += list(ast.iter_child_nodes(node))


def reads_environment(node: ast.AST) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")) or (
        isinstance(node, ast.Name) and node.id in ("environ", "getenv", "load_dotenv", "load_credentials")
    )


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_go_down_only(path):
    assert violations(module_name(path), ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent.name == LIBRARY], ids=module_name)
def test_the_library_prints_nothing_and_reads_no_environment_at_import(path):
    tree = ast.parse(path.read_text())
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    front_door = path.stem == "cli"  # it is the commands' own voice: help and errors
    assert [name.lineno for name in names if name.id == "print" and not front_door] == []
    assert [ast.unparse(node) for node in at_import(tree) if reads_environment(node)] == []


def test_the_package_has_no_sub_package():
    """Modules are files, artifacts are folders."""
    assert list((ROOT / LIBRARY).glob("*/**/__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("persona_vectors.traits", "import judge"),
        ("persona_vectors.traits", "def f():\n from eval.eval_persona import main"),
        ("activation_steer", "from data_generation import x"),
        ("eval.demo", "import generate_vec"),
        ("generate_vec", "import training"),
    ],
)
def test_an_upward_import_is_found(module, code, monkeypatch):
    monkeypatch.setattr(f"{__name__}.OURS", OURS | {"training", "generate_vec"})
    assert len(violations(module, ast.parse(code))) == 1


def test_an_import_time_read_is_found_and_a_later_one_is_fine():
    early = ast.parse("import os\nclass A:\n key = os.environ['K']\ndef f(x=os.getenv('Y')): pass")
    late = ast.parse("import os\ndef f():\n return os.environ['K']\ng = lambda: os.getenv('Y')")
    assert sum(map(reads_environment, at_import(early))) == 2
    assert not any(map(reads_environment, at_import(late)))
