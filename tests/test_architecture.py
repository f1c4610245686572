"""The house rules that a program can check: who imports whom, what is never imported, how long a piece may be.

Each rule is a function from a package folder to a list of offences. It is held against the package, and against a
planted offence, so that a rule that has gone blind is noticed.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "magi"
ROOMS = (
    {"errors"},
    {"devices", "files", "seeding", "progress"},
    {"weights"},
    {"untrusted"},
    {"config"},
    {"config_files"},
    {"presets"},
    {"data"},
    {"vae"},
    {"latents"},
    {"text"},
    {"model"},
    {"training", "sampling"},
    {"evaluation"},
    {"bench"},
    {"app"},
    {"cli"},
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
# Triton comes with PyTorch for GPUs; the modules of kernels need it, and only those that find it import them.
MODEL_MAY_IMPORT = {"torch", "triton", "einops", "magi.config", "magi.model", *sys.stdlib_module_names}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "torchvision", "scipy"}
READERS_OF_PICKLES = {"untrusted/child.py"}  # in a child process, weights_only
FORBIDDEN_NAMES = ("utils.py", "util.py", "common.py", "helpers.py", "misc.py")
FILE_LINES, FUNCTION_LINES = 400, 60
MODULES_IN_A_FOLDER = 16


Rule = Callable[[Path], list[str]]


parsed = cache(ast.parse)
"""The tree of a text, which every rule asks for again."""


def sources(package: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), parsed(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules that ``tree`` imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            # 'from magi import config' names a module of the package, 'from magi.config import Config' a thing in one.
            yield from (f"magi.{alias.name}" for alias in node.names) if node.module == "magi" else (node.module,)


def room_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def rooms_import_only_to_their_left(package: Path) -> list[str]:
    offences = []
    for file, tree in sources(package):
        room = room_of(file)
        if room in ("__init__", "__main__"):  # the map of the package and its entry point, outside the rooms
            continue
        if room not in RANK:
            offences.append(f"{file}: '{room}' is no room")
            continue
        for module in imported(tree):
            parts = module.split(".")
            if parts[0] != "magi" or len(parts) < 2 or parts[1] == room:
                continue
            if parts[1] not in RANK or RANK[parts[1]] >= RANK[room]:
                offences.append(f"{file}: {room} imports {module}")
    return offences


def reads_weights_only(call: ast.Call) -> bool:
    return any(
        word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True
        for word in call.keywords
    )


def model_needs_torch_and_einops_alone(package: Path) -> list[str]:
    offences = []
    for file, tree in sources(package):
        if room_of(file) == "model":
            for module in imported(tree):
                name = ".".join(module.split(".")[:2]) if module.startswith("magi.") else module.split(".")[0]
                if name not in MODEL_MAY_IMPORT:
                    offences.append(f"{file}: imports {module}")
    return offences


def nothing_unsafe_or_device_bound(package: Path) -> list[str]:
    offences = []
    for file, tree in sources(package):
        offences += [
            f"{file}: imports {module}" for module in imported(tree) if module.split(".")[0] in FORBIDDEN_IMPORTS
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "cuda":
                    offences.append(f"{file}:{node.lineno}: .cuda(); devices come from arguments")
                loader = ast.unparse(node.func)
                if loader == "torch.jit.load":
                    offences.append(f"{file}: torch.jit.load runs the code of the file")
                if loader == "torch.load" and not (file in READERS_OF_PICKLES and reads_weights_only(node)):
                    offences.append(f"{file}:{node.lineno}: torch.load reads pickles")
    return offences


def files_and_functions_are_short(package: Path) -> list[str]:
    offences = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > FILE_LINES:
            offences.append(f"{path.name}: {lines} lines")
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    offences.append(f"{path.name}: {node.name} has {lines} lines")
    return offences


def files_are_named_for_what_they_hold(package: Path) -> list[str]:
    files = [path.relative_to(package).as_posix() for path in sorted(package.rglob("*.py"))]
    return [
        file
        for file in files
        if file.rpartition("/")[2] in FORBIDDEN_NAMES or file.rpartition("/")[2].startswith("base_")
    ]


def modules_say_what_they_are(package: Path) -> list[str]:
    return [file for file, tree in sources(package) if tree.body and ast.get_docstring(tree) is None]


def folders_are_small(package: Path) -> list[str]:
    counts = Counter(path.parent for path in package.rglob("*.py") if path.name != "__init__.py")
    return [
        f"{folder.relative_to(package).as_posix()}: more than {MODULES_IN_A_FOLDER} modules"
        for folder, count in sorted(counts.items())
        if count > MODULES_IN_A_FOLDER
    ]


def public_class_names_are_unique(package: Path) -> list[str]:
    homes: dict[str, list[str]] = {}
    for file, tree in sources(package):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(file)
    return [f"{name}: {', '.join(files)}" for name, files in sorted(homes.items()) if len(files) > 1]


def imports_inside_a_room_have_no_circle(package: Path) -> list[str]:
    """Circles of modules that import each other, at run time or later; imports for type checkers alone do not count."""
    modules = {f"magi.{file.removesuffix('.py').replace('/', '.')}": tree for file, tree in sources(package)}
    graph = {name: {m for m in imported(without_type_checking(tree)) if m in modules} for name, tree in modules.items()}
    for tree_name, tree in modules.items():  # 'from magi.model import masking' imports the module, too
        for node in ast.walk(without_type_checking(tree)):
            if isinstance(node, ast.ImportFrom):
                graph[tree_name] |= {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
    circles = []
    while graph:
        leaves = {name for name, targets in graph.items() if not targets & graph.keys() - {name}}
        if not leaves:
            break
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    if graph:  # what also nobody outside imports leads into a circle without being part of it
        while idle := graph.keys() - set().union(*graph.values()):
            graph = {name: targets for name, targets in graph.items() if name not in idle}
        circles.append("circle among " + ", ".join(sorted(graph)))
    return circles


def without_type_checking(tree: ast.Module) -> ast.Module:
    body = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    return ast.Module(body=body, type_ignores=[])


PLANTED: list[tuple[Rule, str, str]] = [
    (folders_are_small, "data/many/", ""),
    (public_class_names_are_unique, "data/twice.py", "class Clip: ..."),
    (imports_inside_a_room_have_no_circle, "data/first.py", "from magi.data import second"),
    (nothing_unsafe_or_device_bound, "untrusted/child.py", "import torch\nx = torch.jit.load('model.pt')"),
    (rooms_import_only_to_their_left, "data/clips.py", "import magi.vae.adapters"),
    (
        rooms_import_only_to_their_left,
        "training/trainer.py",
        "def f():\n    from magi.sampling.generate import generate",
    ),
    (rooms_import_only_to_their_left, "sampling/generate.py", "from magi.training import loss"),
    (rooms_import_only_to_their_left, "config.py", "from magi import presets"),
    (rooms_import_only_to_their_left, "attic/old.py", "x = 1"),
    (model_needs_torch_and_einops_alone, "model/magi.py", "import numpy as np"),
    (model_needs_torch_and_einops_alone, "model/magi.py", "from magi.errors import CheckpointError"),
    (model_needs_torch_and_einops_alone, "model/magi.py", "from safetensors.torch import load_file"),
    (nothing_unsafe_or_device_bound, "model/magi.py", "def f(x):\n    return x.cuda()"),
    (nothing_unsafe_or_device_bound, "data/index/index.py", "import pickle"),
    (nothing_unsafe_or_device_bound, "data/decoding/frames.py", "from torchvision.io import read_video"),
    (nothing_unsafe_or_device_bound, "sampling/pipeline.py", "import torch\nx = torch.load('model.pt')"),
    (nothing_unsafe_or_device_bound, "untrusted/child.py", "import torch\nx = torch.load('model.pt')"),
    (
        nothing_unsafe_or_device_bound,
        "vae/omnitokenizer/adapter.py",
        "import torch\nx = torch.load('model.pt', weights_only=True)",
    ),
    (files_and_functions_are_short, "data/long.py", "x = 1\n" * 401),
    (files_and_functions_are_short, "data/long.py", "def f():\n" + "    x = 1\n" * 60),
    (files_are_named_for_what_they_hold, "data/utils.py", "x = 1"),
    (files_are_named_for_what_they_hold, "vae/base_vae.py", "x = 1"),
    (modules_say_what_they_are, "data/clips.py", "x = 1"),
]
RULES = sorted({rule for rule, _, _ in PLANTED}, key=lambda rule: rule.__name__)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Rule) -> None:
    assert rule(PACKAGE) == []


@pytest.mark.parametrize(("rule", "file", "text"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_rule_sees_a_planted_offence(rule: Rule, file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    if file.endswith("/"):
        (tmp_path / file).mkdir()
        for number in range(MODULES_IN_A_FOLDER + 1):
            (tmp_path / file / f"module_{number}.py").write_text(text)
    else:
        (tmp_path / file).write_text(text)
    if rule is public_class_names_are_unique:
        (tmp_path / "clips.py").write_text(text)
    if rule is imports_inside_a_room_have_no_circle:
        (tmp_path / "data/second.py").write_text("def f():\n    import magi.data.first")
    assert len(rule(tmp_path)) == 1


LIGHT = [
    "import magi",
    "import magi.config, magi.presets, magi.errors",
    "from magi import load_config, preset, Config; preset('digits')",
    "from magi.cli.main import main; assert main(['--help']) == 0",
    "from magi.cli.main import main; assert main(['train', '--help']) == 0",
    "from magi.cli.main import main; assert main(['sample', '--help']) == 0",
    "from magi.cli.main import main; assert main(['train', 'digits', '--run', 'x', '--training.stepz', '3']) == 2",
    "from magi.cli.main import VERBS; import importlib\n"
    "for verb in VERBS: assert callable(getattr(importlib.import_module('magi.cli.' + verb.module), verb.function))",
]


@pytest.mark.parametrize("statement", LIGHT)
def test_no_torch_is_loaded(statement: str) -> None:
    """Help, configs and usage errors answer in a fraction of a second, which importing torch alone exceeds."""
    code = f"{statement}\nimport sys\nassert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lazy_names_are_real() -> None:
    import magi

    for name in magi.__all__:
        assert getattr(magi, name) is not None
    with pytest.raises(AttributeError, match="Magic"):
        magi.Magic  # noqa: B018
