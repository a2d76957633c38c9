"""Where things live: which files may import which, and how long a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = (
    *("pretraining", "finetuning", "embedding", "serving"),
    *("benchmarks", "examples", "experiments", "docs", "tests"),
)
FILES = {
    file.relative_to(ROOT).as_posix()
    for place in (ROOT.glob("*.py"), *((ROOT / folder).rglob("*.py") for folder in FOLDERS))
    for file in place
}
MODULES = {
    file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES
}
REMOTE_CODE = {
    file for file in FILES if file.endswith("_chinese_modernbert.py") and "/" not in file
}


def imports_of(file: str) -> set[str]:
    """The files of the repository that a file imports, within functions too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = node.module or ""
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return {MODULES[name] for name in found if name in MODULES} - {file}


GRAPH = {file: imports_of(file) for file in FILES}


def rooms(*folders: str) -> set[str]:
    return {file for file in FILES if file.startswith(folders)}


# What each room may import of the repository, itself aside.
SHARED = {f"pretraining/{name}.py" for name in ("command", "files", "machine", "plain_yaml")}
LIBRARY = REMOTE_CODE | SHARED | {"data_collator_wwm.py"}
MAY_IMPORT = {
    "pretraining/data/": LIBRARY,
    "pretraining/tokenizer/": LIBRARY | rooms("pretraining/data/"),
    "pretraining/run/": LIBRARY | rooms("pretraining/data/", "pretraining/tokenizer/"),
    "pretraining/command.py": set(),
    "pretraining/files.py": set(),
    "pretraining/machine.py": set(),
    "pretraining/plain_yaml.py": {"pretraining/files.py"},
    "finetuning/": REMOTE_CODE | SHARED,
    "serving/": REMOTE_CODE | SHARED | {"pretraining/data/sentences.py"},
    "embedding/": SHARED
    | {"word_vectors_chinese_modernbert.py", "pretraining/run/complete_checkpoints.py"}
    | {f"pretraining/data/{name}.py" for name in ("corpus", "draws", "sentences", "shortening")},
    "data_collator_wwm.py": set(),
    "examples/": set(),
}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_room_reaches_back(room):
    allowed = MAY_IMPORT[room] | rooms(room)
    assert rooms(room)
    assert {file: GRAPH[file] - allowed for file in rooms(room) if GRAPH[file] - allowed} == {}


def test_what_remote_code_loads_imports_nothing_else():
    assert len(REMOTE_CODE) >= 4
    assert {file for file in REMOTE_CODE if GRAPH[file] - REMOTE_CODE} == set()


def test_only_tests_import_tests_benchmarks_and_experiments():
    for folder in ("tests/", "benchmarks/", "experiments/"):
        others = rooms("") - rooms(folder, "tests/")
        assert {file for file in others if GRAPH[file] & rooms(folder)} == set()


def test_there_is_no_circle():
    done, under_way = set(), []

    def visit(file: str) -> None:
        assert file not in under_way, " → ".join([*under_way, file])
        if file not in done:
            under_way.append(file)
            for other in sorted(GRAPH[file]):
                visit(other)
            done.add(under_way.pop())

    for file in sorted(FILES):
        visit(file)


def test_no_file_is_too_long_to_be_one_room():
    lengths = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    longest = {"modeling_chinese_modernbert.py": 1_000, "train_mlm.py": 150}
    too_long = {file: n for file, n in lengths.items() if n > longest.get(file, 650)}
    assert too_long == {}
