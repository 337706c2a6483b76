"""Who may import whom, who may touch the disk, and what no module does: read from the source, not from memory."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "trebi_gym": "trebi_gym",
    "envs": "trebi_gym.envs",
    "agents": "trebi_gym.agents",
    "datasets": "trebi_gym.datasets",
}

WORDS = {"trebi_gym.budget", "trebi_gym.checks", "trebi_gym.costs", "trebi_gym.errors"}
FILES = "trebi_gym.files"
# verbs that put everything together; nobody but they and the scripts may import them
TOP = {
    f"trebi_gym.{name}"
    for name in (
        "bench_report",
        "benchmark",
        "cli",
        "critics",
        "critics_plots",
        "critics_rows",
        "data_commands",
        "demo",
        "describe",
        "downloading",
        "generating",
        "learning_commands",
        "measuring",
        "report_commands",
        "result_agents",
        "result_cells",
        "result_closing",
        "result_measures",
        "result_page",
        "result_plan",
        "result_targets",
        "result_words",
        "result_work",
        "results",
        "stages",
        "terminal",
        "textbook",
    )
}
# the first entry that a module begins with tells what it may import of ours, beside the shared words
LAYERS = [
    *((word, set()) for word in sorted(WORDS | {FILES})),
    *((module, {"trebi_gym"}) for module in sorted(TOP)),
    ("trebi_gym.rollout", set()),
    ("trebi_gym.records", set()),
    ("trebi_gym.schedules", {"trebi_gym.rollout"}),
    ("trebi_gym.evaluation", {"trebi_gym.rollout", "trebi_gym.records", "trebi_gym.schedules"}),
    ("trebi_gym.plots", {"trebi_gym.records"}),
    ("trebi_gym.video", {"trebi_gym.rollout", "trebi_gym.schedules"}),
    ("trebi_gym.agents.diffusion", {"trebi_gym.agents.diffusion"}),
    ("trebi_gym.agents.networks", {"trebi_gym.agents.networks"}),
    ("trebi_gym.agents", {"trebi_gym.agents", "trebi_gym.datasets", "trebi_gym.rollout"}),
    ("trebi_gym.datasets.collect", {"trebi_gym.datasets", "trebi_gym.rollout"}),
    ("trebi_gym.datasets.recording", {"trebi_gym.datasets", "trebi_gym.rollout"}),
    ("trebi_gym.datasets", {"trebi_gym.datasets"}),
    ("trebi_gym.envs", {"trebi_gym.envs"}),
]
NOT_EVEN_WORDS = ("trebi_gym.agents.diffusion", "trebi_gym.agents.networks")
DISK = {
    "trebi_gym.files",
    "trebi_gym.rollout",
    "trebi_gym.records",
    "trebi_gym.plots",
    "trebi_gym.video",
    "trebi_gym.envs.adaptive",
    "trebi_gym.agents.calibrating",
    "trebi_gym.agents.checkpoint",
    "trebi_gym.agents.training",
    "trebi_gym.agents.diffuser_import",
    "trebi_gym.datasets.parts",
    "trebi_gym.datasets.recipes",
    "trebi_gym.datasets.saved_policies",
    "trebi_gym.datasets.sources",
    *TOP,
}
DISK_CALLS = {
    "open",
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "mkdir",
    "unlink",
    "touch",
    "rmtree",
    "fsync",
}
DISK_MODULES = {"h5py", "zipfile", "tempfile", "shutil"}
SEEDED = {"default_rng", "Generator", "PCG64", "SeedSequence", "BitGenerator"}


def sources():
    """Every source file of the package, by its module's name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


SOURCES = sources()
SCRIPTS = {f"scripts/{path.name}": path for path in sorted((ROOT / "scripts").glob("*.py"))}
EVERY = SOURCES | SCRIPTS


@cache
def tree(path):
    return ast.parse(path.read_text(), str(path))


def imports(module, path):
    """Every module that is imported, with the node; ``from a import b`` is a.b where that is a module of ours."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in SOURCES else base), node


def of_ours(module, path):
    return {name for name, _ in imports(module, path) if name.split(".")[0] == "trebi_gym"}


def within(name, package):
    return name == package or name.startswith(package + ".")


def writes(module):
    return any(within(module, writer) for writer in DISK)


def permitted(module):
    own = next((allowed for layer, allowed in LAYERS if within(module, layer)), None)
    assert own is not None, f"{module} is in no layer: enter it in LAYERS and in the architecture's table"
    shared = set() if module.startswith(NOT_EVEN_WORDS) else set(WORDS)
    return own | shared | ({FILES} if writes(module) else set())


def calls(path):
    """(name, whether it is a method, node) of every call."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id, False, node
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr, True, node


def test_the_sources_are_found():
    assert {
        "trebi_gym",
        "trebi_gym.rollout",
        "trebi_gym.envs.wrappers",
        "trebi_gym.agents.diffusion.samplers",
    } <= set(SOURCES)
    assert "trebi_gym.agents.trebi" in of_ours("trebi_gym.agents", SOURCES["trebi_gym.agents"])


@pytest.mark.parametrize("module", [name for name in SOURCES if name != "trebi_gym"])
def test_a_module_imports_only_what_its_layer_may(module):
    allowed = permitted(module)
    wrong = {
        name for name in of_ours(module, SOURCES[module]) if not any(within(name, root) for root in allowed)
    }
    assert not wrong, f"{module} imports {sorted(wrong)}; it may import {sorted(allowed)}"


@pytest.mark.parametrize("module", [name for name in SOURCES if name not in TOP])
def test_only_the_verbs_on_top_import_one_another(module):
    assert not of_ours(module, SOURCES[module]) & TOP


def test_the_package_itself_imports_environments_and_words_only_and_the_rest_lazily():
    path = SOURCES["trebi_gym"]
    at_once = [node for node in tree(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {
        name for name, node in imports("trebi_gym", path) if node in at_once and name.startswith("trebi_gym")
    }
    assert names <= WORDS | {"trebi_gym.envs"}


@pytest.mark.parametrize("module", EVERY)
def test_folders_of_the_repository_are_imported_as_parts_of_the_package(module):
    roots = {name.split(".")[0] for name, _ in imports(module, EVERY[module])}
    assert not roots & {"envs", "agents", "datasets", "scripts", "tests"}, (
        "a bare import makes second copies of classes"
    )


@pytest.mark.parametrize("module", [name for name in SOURCES if not writes(name)])
def test_only_those_whose_task_it_is_touch_the_disk(module):
    touched = {name for name, _, _ in calls(SOURCES[module]) if name in DISK_CALLS}
    touched |= {name for name, _ in imports(module, SOURCES[module]) if name.split(".")[0] in DISK_MODULES}
    assert not touched


@pytest.mark.parametrize("module", EVERY)
def test_no_file_format_can_run_code(module):
    names = {name.split(".")[0] for name, _ in imports(module, EVERY[module])}
    assert not names & {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
    reads_published = module == "trebi_gym.agents.diffuser_import"
    assert "pickle" not in names or reads_published
    if reads_published:
        # Unpickler alone, of which a class that refuses every foreign name is made
        taken = {
            alias.name
            for name, node in imports(module, EVERY[module])
            if name == "pickle"
            for alias in node.names
        }
        assert taken == {"Unpickler", "UnpicklingError"}
    for name, method, node in calls(EVERY[module]):
        assert name not in {"eval", "exec", "__import__"} or method, f"line {node.lineno}"
        assert name != "Unpickler", (
            f"line {node.lineno}: only the class that refuses foreign names may be made"
        )
        if method and name in ("load", "save") and isinstance(node.func.value, ast.Name):
            only_weights = any(
                keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is True
                for keyword in node.keywords
            )
            torch_reads = node.func.value.id == "torch"
            assert not torch_reads or (reads_published and name == "load" and only_weights), (
                f"line {node.lineno}: torch.{name} pickles"
            )
        for keyword in node.keywords:
            assert keyword.arg != "allow_pickle", f"line {node.lineno}"


@pytest.mark.parametrize("module", [name for name in SOURCES if name not in TOP])
def test_library_code_does_not_print(module):
    lines = [node.lineno for name, method, node in calls(SOURCES[module]) if name == "print" and not method]
    assert not lines


@pytest.mark.parametrize("module", EVERY)
def test_no_error_is_swallowed_by_a_bare_except(module):
    handlers = [node for node in ast.walk(tree(EVERY[module])) if isinstance(node, ast.ExceptHandler)]
    assert all(handler.type is not None for handler in handlers)


@pytest.mark.parametrize("module", SOURCES)
def test_no_global_state_is_drawn_from_or_kept(module):
    for node in ast.walk(tree(SOURCES[module])):
        assert not isinstance(node, ast.Global), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random"):
            assert node.attr in SEEDED, f"line {node.lineno}: {ast.unparse(node)}"
    assert "random" not in {name for name, _ in imports(module, SOURCES[module])}


@pytest.mark.parametrize("module", EVERY)
def test_every_module_says_what_it_is_for(module):
    assert ast.get_docstring(tree(EVERY[module]))
