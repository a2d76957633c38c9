"""README.md and docs/: what the pages name exists, and their code parses."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md",
    *sorted(
        page.relative_to(ROOT).as_posix()
        for pages in ("docs/*.md", "experiments/*/README.md", "models/*/README.md")
        for page in ROOT.glob(pages)
    ),
]
# The journal is a record: it may name what has been renamed or removed since.
CURRENT = [page for page in PAGES if page != "docs/journal.md"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .+\n)+", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Paths below a folder of the repository, and Python files at the root.
NAMED_PATH = re.compile(
    r"(?<![\w./-])((?:benchmarks|configs|docs|embedding|examples|experiments|finetuning|pretraining|serving|tests)/[\w./-]*\w/?|\w+\.py)(?!\w)"
)
COMMAND = re.compile(r"\bpython (-m [\w.]+|[\w./-]+\.py)|(?<= )(train_mlm\.py)")
OPTION = re.compile(r"(?<!\S)--[a-z][\w-]*")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", read(page))


def code_of(page: str) -> list[str]:
    """Fenced and indented blocks and code spans, a command that goes on in the next line joined."""
    prose = prose_of(page)
    blocks = [body for _, body in FENCE.findall(read(page))] + INDENTED.findall(prose)
    spans = [" ".join(span.split()) for span in SPAN.findall(INDENTED.sub("", prose))]
    return [code.replace("\\\n", " ") for code in blocks + spans]


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub and the Hub make of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def broken_links(page: str) -> list[str]:
    broken = []
    for target in LINK.findall(prose_of(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        exists = file.exists()
        if exists and anchor:
            exists = anchor in anchors_of(file.relative_to(ROOT).as_posix())
        if not exists:
            broken.append(target)
    return broken


def missing_paths(text: str) -> list[str]:
    return [path for path in NAMED_PATH.findall(text) if not (ROOT / path).exists()]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


def file_of(command: str) -> Path:
    """The file that `-m package.module` or `path.py` runs."""
    if command.startswith("-m "):
        return ROOT / f"{command[3:].replace('.', '/')}.py"
    return ROOT / command


def wrong_commands(code: str) -> list[str]:
    """Commands whose file does not exist, and options that their file does not have."""
    wrong = [f"make {name}" for name in re.findall(r"\bmake ([a-z-]+)", code)]
    wrong = [command for command in wrong if command[5:] not in make_targets()]
    for line in code.splitlines():
        if not (found := COMMAND.search(line)):
            continue
        file = file_of(found[1] or found[2])
        if not file.exists():
            wrong.append(found[0])
            continue
        source = file.read_text(encoding="utf-8")
        for module in re.findall(r"^from (pretraining\.[\w.]+) import", source, re.MULTILINE):
            if (shared := file_of(f"-m {module}")).is_file():  # options that it defines for others
                source += shared.read_text(encoding="utf-8")
        arguments = line[found.end() :].split("  #")[0]
        wrong += [f"{found[0]} {o}" for o in OPTION.findall(arguments) if f'"{o}"' not in source]
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", CURRENT)
def test_named_files_are_there(page):
    named = NAMED_PATH.findall(read(page))
    assert named
    assert missing_paths(read(page)) == []


@pytest.mark.parametrize("page", CURRENT)
def test_commands_and_their_options_are_there(page):
    assert [wrong for code in code_of(page) for wrong in wrong_commands(code)] == []


def test_commands_in_the_comments_of_run_files_are_there():
    files = sorted(ROOT.glob("configs/**/*.yaml"))
    comments = [
        "\n".join(re.findall(r"^# ?(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE))
        for file in files
    ]
    assert any(COMMAND.search(comment) for comment in comments)
    assert [wrong for each in comments for wrong in wrong_commands(each.replace("\\\n", " "))] == []


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_parse(page):
    for language, body in FENCE.findall(read(page)):
        if language == "python":
            ast.parse(body)


def test_commands_are_found_at_all():
    """The checks above would also pass if they found nothing to check."""
    found = [
        match[0] for page in CURRENT for code in code_of(page) for match in COMMAND.finditer(code)
    ]
    assert {"python train_mlm.py", "python -m pretraining.prepare_corpus"} <= set(found)


def test_what_is_not_there_is_noticed():
    assert missing_paths("see `configs/none.yaml` and absent.py, not configs/mini.yaml") == [
        "configs/none.yaml",
        "absent.py",
    ]
    assert wrong_commands("make quickstart; make coffee") == ["make coffee"]
    assert wrong_commands("python -m pretraining.absent --corpus X") == [
        "python -m pretraining.absent"
    ]
    assert wrong_commands("python train_mlm.py RUN.yaml --resume --no_such_option") == [
        "python train_mlm.py --no_such_option"
    ]
    # --beside is defined in the module that train_tokenizer imports it from.
    assert wrong_commands("python -m pretraining.train_tokenizer --beside X --output Y") == []


def unknown_messages(page: str) -> list[str]:
    """Messages quoted in the first column of a page's tables that no source file holds."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("pretraining/**/*.py"), ROOT / "Makefile"]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings that go on in the next line
    cells = re.findall(r"^\| ([^|]+) \|", prose_of(page), re.MULTILINE)
    quoted = [span for cell in cells for span in SPAN.findall(cell)]
    # `key: value` is a setting; a name alone is checked by other tests.
    messages = [span for span in quoted if " " in span and not re.fullmatch(r"\w+: \w+", span)]
    assert messages
    parts = [part.strip() for message in messages for part in message.split("…")]
    return [part for part in parts if part not in source]


def test_quoted_messages_are_those_of_the_code():
    assert unknown_messages("docs/troubleshooting.md") == []


def test_every_page_can_be_reached_from_the_readme():
    linked = {target.partition("#")[0] for target in LINK.findall(prose_of("README.md"))}
    assert [page for page in PAGES[1:] if page not in linked] == []


def test_the_front_matter_is_what_the_hub_reads():
    _, front, _ = read("README.md").split("---\n", 2)
    card = yaml.safe_load(front)
    assert (card["language"], card["license"]) == ("zh", "apache-2.0")
    assert (card["library_name"], card["pipeline_tag"]) == ("transformers", "fill-mask")
    assert all(isinstance(tag, str) for tag in card["tags"])
