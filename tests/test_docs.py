"""Guards the prose: page sizes, links, quoted error messages, and the words of the field.

A failure lists FILE:LINE, the text and what to write instead.
"""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
CODE_FOLDERS = ("grm_jax", "launch", "studies", "experiments", "benchmarks", "tests")
# A path in the repository, which may contain placeholders such as FAMILY, * or {seed}.
REPOSITORY_PATH = re.compile(
    r"(?<![\w/.-])(?:grm_jax|launch|tests|docs|experiments|studies|benchmarks|notebooks)/[\w./*{}-]*"
)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
# Quoted in docs/troubleshooting.md, but not messages of this code: messages of JAX and Kubernetes,
# options, and names of metrics.
NOT_OUR_MESSAGES = {"RESOURCE_EXHAUSTED", "libtpu", "reward", "parse_rate", "group_zero", "gap_max"}

# (regular expression, what to write instead). A space in an expression also matches a line break.
PHRASES = [
    (r"\b(go|goes|gone|going|went) on\b", "resume, continue"),
    (r"\b(could|can) not be read\b", "unparseable; could not be parsed, loaded or opened"),
    (r"\bread[_-]rate\b|\bread rate\b", "parse rate, parse_rate"),
    (r"\bunread\b|\bunreadable (critique|judg|text|repl)", "unparsed, unparseable"),
    (r"\bnumbers that are not\b", "non-finite values, NaN"),
    (r"\bwhat is held out\b", "the held-out set"),
    (r"\b(left|leave|leaves|leaving) aside\b", "ignored, skipped, dropped"),
    (
        r"\bcannot step out\b|\bsteps? out of (its|their) place",
        "sanitised against prompt injection",
    ),
    (r"\b(the|a) whole story\b", "works unchanged"),
    (r"\b(memory|roofline|the|a) bills?\b", "memory estimate, memory breakdown"),
    (r"\b(its|their) business\b", "name the component that is responsible"),
    (r"\b(model|models|weights|policy) from nothing\b", "randomly initialised"),
    (r"\bfates?\b", "outcome"),
    (r"\bin the place of\b", "instead of, replaces, overrides"),
    (r"\bthe way of an?\b", "life of, path of"),
    (r"\b(do|does|did) not come\b", "failed to join, are missing"),
    (r"\b(is|are|was|were) not there\b", "missing, does not exist"),
    (r"\breads? nothing\b", "content-blind"),
    (r"\bbring along\b|\bbrings along\b", "load, need"),
]
# Names that no function, class, argument or variable has.
NAMES = {
    "fate": "outcome",
    "read_rate": "parse_rate",
    "found": "name the result: matches, files, errors",
    "held": "name the set or the lock",
    "told": "name the flag: verbose, warned",
    "wanted": "expected, requests",
    "otherwise": "default",
    "asked": "requests, prompts",
    "said": "output, message",
    "noted": "recorded, metadata",
}
# (file, phrase): why the file may contain the phrase.
ALLOWED_PHRASES = {
    ("tests/test_docs.py", None): "this file lists the phrases",
    ("grm_jax/training/rft_data.py", "fate"): "field of older files",
    ("tests/training/test_rft_data.py", "fate"): "field of older files",
}


def strings(tree: ast.AST) -> list[tuple[int, str]]:
    """Every string constant as (line, text). Values in an f-string become NUL characters."""
    texts, inside_f_strings = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            constants = [v for v in node.values if isinstance(v, ast.Constant)]
            inside_f_strings |= {id(constant) for constant in constants}
            pieces = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
            texts.append((node.lineno, "".join(pieces)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in inside_f_strings:
                texts.append((node.lineno, node.value))
    return texts


def comments(source: str) -> list[tuple[int, str]]:
    """Every comment as (line, text). Comments on consecutive lines are one text."""
    blocks: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, text = token.start[0], token.string.lstrip("#")
            if blocks and line == blocks[-1][0] + blocks[-1][1].count("\n") + 1:
                blocks[-1] = (blocks[-1][0], f"{blocks[-1][1]}\n{text}")
            else:
                blocks.append((line, text))
    return blocks


def texts_of(file: Path) -> list[tuple[int, str]]:
    """Strings and comments of a Python file, or the text of a page or notebook, as (line, text).

    For a notebook, the line is the number of the cell.
    """
    source = file.read_text()
    if file.suffix == ".py":
        return strings(ast.parse(source)) + comments(source)
    if file.suffix == ".ipynb":
        cells = json.loads(source)["cells"]
        return [(number, "".join(cell["source"])) for number, cell in enumerate(cells, 1)]
    return [(1, source)]


def code_files() -> list[Path]:
    return sorted(file for folder in CODE_FOLDERS for file in (ROOT / folder).glob("**/*.py"))


def prose_files() -> list[Path]:
    readmes = [file for folder in CODE_FOLDERS for file in (ROOT / folder).glob("**/README.md")]
    notebooks = (ROOT / "notebooks").glob("*.ipynb")
    return sorted({*code_files(), *PAGES, ROOT / "CHANGELOG.md", *readmes, *notebooks})


def phrases_in(file: Path) -> list[str]:
    """One line for each phrase of PHRASES in a file."""
    name, faults = file.relative_to(ROOT).as_posix(), []
    for first_line, text in texts_of(file):
        for pattern, instead in PHRASES:
            for hit in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE):
                phrase = " ".join(hit.group().split())
                if not ALLOWED_PHRASES.keys() & {(name, None), (name, phrase.lower())}:
                    line = first_line + text.count("\n", 0, hit.start())
                    faults.append(f'{name}:{line}: "{phrase}" -> {instead}')
    return faults


def names_in(file: Path) -> list[str]:
    """One line for each definition in a Python file whose name is in NAMES."""
    faults = []
    for node in ast.walk(ast.parse(file.read_text())):
        name = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        if name is not None and name.strip("_") in NAMES:
            place = f"{file.relative_to(ROOT)}:{node.lineno}"
            faults.append(f"{place}: `{name}` -> {NAMES[name.strip('_')]}")
    return faults


def prose_lines(page: str) -> list[tuple[int, str]]:
    """(line number, line) of a Markdown page without its code blocks, tables and images."""
    lines, in_code = [], False
    for number, line in enumerate(page.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.lstrip().startswith(("|", "![")):
            lines.append((number, line))
    return lines


def tables(page: str) -> list[tuple[int, int]]:
    """(line number, columns) of every table's header."""
    lines = page.splitlines()
    return [
        (number, header.count("|") - 1)
        for number, (header, rule) in enumerate(zip(lines, lines[1:]), 1)
        if header.startswith("|") and re.fullmatch(r"\|[\s:|-]+\|", rule)
    ]


def fail_on(faults: list[str]) -> None:
    if faults:
        pytest.fail(f"{len(faults)} to fix:\n" + "\n".join(sorted(faults)), pytrace=False)


# ---------------------------------------------------------------- pages


def test_the_readme_fits_its_size():
    text = README.read_text()
    lines, words = text.count("\n"), len(text.split())
    assert lines <= 120, f"README.md has {lines} lines, at most 120: move a section to docs/"
    assert words <= 900, f"README.md has {words} words, at most 900: move a section to docs/"
    wide = [(line, columns) for line, columns in tables(text) if columns > 5]
    fail_on([f"README.md:{line}: a table of {n} columns, at most 5" for line, n in wide])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped_at_100_columns(page):
    faults = [
        f"{page.relative_to(ROOT)}:{number}: {len(line)} columns"
        for number, line in prose_lines(page.read_text())
        if len(line) > 100 and " " in line.strip()
    ]
    fail_on(faults)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_to_existing_files(page):
    faults = [
        f"{page.relative_to(ROOT)}:{number}: {target} does not exist"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        for target in LINK.findall(line)
        if not (page.parent / target).exists()
    ]
    fail_on(faults)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_of_the_repository_exist(page):
    faults = [
        f"{page.relative_to(ROOT)}:{number}: {path} does not exist"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        for path in REPOSITORY_PATH.findall(line)
        if not re.search(r"[A-Z]{3}|[*{}]", path) and not (ROOT / path.rstrip(".")).exists()
    ]
    fail_on(faults)


def test_the_readme_links_to_every_page_of_docs():
    links = set(LINK.findall(README.read_text()))
    missing = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} - links
    assert not missing, f"README.md does not link to {', '.join(sorted(missing))}"


def test_named_fields_of_experiments_exist():
    """Such as `rl.beta`, and `--config.rl.beta=0.02` in a command."""
    from grm_jax.training import rft_samplers
    from grm_jax.training.config_rules import OPTIONAL, SECTIONS

    known = {".".join(filter(None, (s, name))) for s, rules in SECTIONS.items() for name in rules}
    settings = [rft_samplers.settings_of(name) for name in rft_samplers.SAMPLERS]
    known |= {*SECTIONS, *OPTIONAL, *(f"rft.sampling.{name}" for s in settings for name in s)}
    stages = "|".join(section for section in SECTIONS if section and "." not in section)
    field = re.compile(rf"(?:--config\.|`(?=(?:{stages})\.))([a-z_]+(?:\.[a-z_]+)*)")
    faults = [
        f"{page.name}: {name} is no field of an experiment"
        for page in PAGES
        for name in field.findall(page.read_text())
        if name not in known and not name.endswith((".json", ".jsonl", ".png"))
    ]
    fail_on(faults)


# ---------------------------------------------------------------- messages


def quoted_messages(page: str) -> list[tuple[int, str]]:
    """(line number, text) of the back-ticked texts in the first column of every table."""
    return [
        (number, text)
        for number, line in enumerate(page.splitlines(), 1)
        if line.startswith("| ")
        for text in re.findall(r"`([^`]+)`", line.split("|")[1])
        if text not in NOT_OUR_MESSAGES
    ]


def test_every_message_in_troubleshooting_exists_in_the_code():
    messages = quoted_messages((ROOT / "docs/troubleshooting.md").read_text())
    assert len(messages) > 35
    files = [*ROOT.glob("grm_jax/**/*.py"), *ROOT.glob("launch/**/*.py")]
    code_strings = [text for file in files for _, text in strings(ast.parse(file.read_text()))]
    faults = []
    for number, message in messages:
        pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
        if not any(map(pattern.search, code_strings)):
            faults.append(f"docs/troubleshooting.md:{number}: no code raises or logs: {message}")
    fail_on(faults)


# ---------------------------------------------------------------- words


def test_prose_uses_the_words_of_the_field():
    faults = [fault for file in prose_files() for fault in phrases_in(file)]
    fail_on(faults)


def test_names_are_words_of_the_field():
    faults = [fault for file in code_files() for fault in names_in(file)]
    fail_on(faults)


def test_the_phrase_check_reports_file_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    file = tmp_path / "module.py"
    docstring, comment = '"""Trains.\n\nThe run goes\non."""', "# numbers that\n# are not numbers"
    file.write_text(f'{docstring}\n{comment}\nfound = f"read rate {{1}}"\n')
    assert phrases_in(file) == [
        'module.py:3: "goes on" -> resume, continue',
        'module.py:7: "read rate" -> parse rate, parse_rate',
        'module.py:5: "numbers that are not" -> non-finite values, NaN',
    ]
    assert names_in(file) == ["module.py:7: `found` -> name the result: matches, files, errors"]
