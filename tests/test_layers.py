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
    "scripts": "scripts",
}

WORDS = ("trebi_gym.budget", "trebi_gym.checks", "trebi_gym.costs", "trebi_gym.errors", "trebi_gym.files")
ON_TOP = ("trebi_gym.commands", "scripts")
"""Verbs that put everything together; nobody imports them."""

# the longest prefix of a module's name tells what it may import of ours, beside the shared words
LAYERS = {
    **dict.fromkeys(WORDS, ()),
    "trebi_gym.rollout": (),
    "trebi_gym.envs": ("trebi_gym.envs",),
    "trebi_gym.datasets": ("trebi_gym.datasets",),
    "trebi_gym.datasets.generation": ("trebi_gym.datasets", "trebi_gym.rollout"),
    "trebi_gym.agents": ("trebi_gym.agents", "trebi_gym.datasets", "trebi_gym.rollout"),
    "trebi_gym.agents.diffusion": ("trebi_gym.agents.diffusion",),
    "trebi_gym.agents.networks": ("trebi_gym.agents.networks",),
    "trebi_gym.evaluation": (
        "trebi_gym.evaluation",
        "trebi_gym.rollout",
        "trebi_gym.agents",
        "trebi_gym.datasets",
    ),
    **dict.fromkeys(ON_TOP, ("trebi_gym", "scripts")),
}
WITHOUT_WORDS = ("trebi_gym.agents.diffusion", "trebi_gym.agents.networks")
AGENT = "trebi_gym.agents.agent"
"""Puts the sub-packages of ``agents`` together; none of them may know it."""

DISK = (
    "trebi_gym.files",
    "trebi_gym.rollout",
    "trebi_gym.evaluation",
    "trebi_gym.envs.adaptive",
    "trebi_gym.agents.calibration",
    "trebi_gym.agents.storage",
    "trebi_gym.agents.training",
    "trebi_gym.datasets.recipes",
    "trebi_gym.datasets.generation",
    "trebi_gym.datasets.sources",
    *ON_TOP,
)
"""Who may read and write files."""
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
    """Every source file, by its module's name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


EVERY = sources()
"""Every module of the package and of the scripts."""
SOURCES = {module: path for module, path in EVERY.items() if module.startswith("trebi_gym")}
"""Those that are installed."""
LIBRARY = [module for module in SOURCES if not module.startswith(ON_TOP)]


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
                yield (full if full in EVERY else base), node


def of_ours(module):
    """The modules of ours that a module imports, those for the type checker only included."""
    return {
        name for name, _ in imports(module, EVERY[module]) if name.split(".")[0] in ("trebi_gym", "scripts")
    }


def within(name, package):
    return name == package or name.startswith(package + ".")


def layer(module):
    """The longest prefix of the module's name that is a layer."""
    found = [prefix for prefix in LAYERS if within(module, prefix)]
    assert found, f"{module} is in no layer: enter its folder in LAYERS and in the architecture's table"
    return max(found, key=len)


def permitted(module):
    shared = () if module.startswith(WITHOUT_WORDS) else WORDS
    return (*LAYERS[layer(module)], *shared)


def writes(module):
    return any(within(module, writer) for writer in DISK)


def cycles():
    """The groups of modules that import each other, directly or through others."""
    targets = {
        module: {name for name in of_ours(module) if name in EVERY and name != module} for module in EVERY
    }

    def reached(module):
        seen, stack = set(), [module]
        while stack:
            for name in targets[stack.pop()] - seen:
                seen.add(name)
                stack.append(name)
        return seen

    reach = {module: reached(module) for module in EVERY}
    return {
        frozenset(name for name in reach[module] if module in reach[name])
        for module in EVERY
        if module in reach[module]
    }


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
        "scripts.results.plan",
    } <= set(EVERY)
    assert "trebi_gym.agents.agent" in of_ours("trebi_gym.agents")


@pytest.mark.parametrize("module", [name for name in EVERY if name != "trebi_gym"])
def test_a_module_imports_only_what_its_layer_may(module):
    allowed = permitted(module)
    wrong = {name for name in of_ours(module) if not any(within(name, root) for root in allowed)}
    assert not wrong, f"{module} imports {sorted(wrong)}; it may import {sorted(allowed)}"


@pytest.mark.parametrize("module", LIBRARY)
def test_nobody_imports_the_commands_and_the_scripts(module):
    assert not [name for name in of_ours(module) if name.startswith(ON_TOP)]


def test_no_modules_import_each_other_in_a_circle_not_even_for_the_type_checker():
    assert not cycles()


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("trebi_gym.agents.")])
def test_no_part_of_the_agent_knows_the_agent(module):
    if module != AGENT:
        assert not of_ours(module) & {AGENT, "trebi_gym.agents"}


@pytest.mark.parametrize("module", [name for name in EVERY if name != AGENT])
def test_nobody_but_the_agent_sets_an_attribute_of_an_agent(module):
    for node in ast.walk(tree(EVERY[module])):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            owner = ast.unparse(node.value)
            assert owner not in {"agent", "self._agent", "self.agent"}, f"line {node.lineno}"


def test_the_package_itself_imports_environments_and_words_only_and_the_rest_lazily():
    path = SOURCES["trebi_gym"]
    at_once = [node for node in tree(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {
        name for name, node in imports("trebi_gym", path) if node in at_once and name.startswith("trebi_gym")
    }
    assert names <= {*WORDS, "trebi_gym.envs"}


@pytest.mark.parametrize("module", EVERY)
def test_folders_of_the_repository_are_imported_as_parts_of_the_package(module):
    roots = {name.split(".")[0] for name, _ in imports(module, EVERY[module])}
    assert not roots & {"envs", "agents", "datasets", "tests"}, "a bare import makes second copies of classes"


@pytest.mark.parametrize("module", [name for name in SOURCES if not writes(name)])
def test_only_those_whose_task_it_is_touch_the_disk(module):
    touched = {name for name, _, _ in calls(SOURCES[module]) if name in DISK_CALLS}
    touched |= {name for name, _ in imports(module, SOURCES[module]) if name.split(".")[0] in DISK_MODULES}
    assert not touched


@pytest.mark.parametrize("module", EVERY)
def test_no_file_format_can_run_code(module):
    names = {name.split(".")[0] for name, _ in imports(module, EVERY[module])}
    assert not names & {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
    reads_published = module == "trebi_gym.agents.storage.diffuser"
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


@pytest.mark.parametrize("module", LIBRARY)
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
