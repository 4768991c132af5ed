"""The docs are true: commands, options, links, configs and extras exist, code runs, and numbers are the scripts'."""

import functools
import itertools
import re
import runpy
import shlex
import shutil
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from bilstm_cls import cli
from bilstm_cls.config_file import load_config
from bilstm_cls.serve.export import export
from tests.command_line import run_cli

ROOT = Path(__file__).parent.parent
DOCS = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
}
EVERY_PAGE = pytest.mark.parametrize("page", DOCS)
LSTM = ["docs/lstm.md", "docs/lstm.zh.md"]
FIGURES = runpy.run_path(str(ROOT / "scripts" / "figures"))
ANCHOR = re.compile(r"[^\w -]")


def blocks_of(page: str, language: str) -> list[str]:
    return [textwrap.dedent(block) for block in re.findall(rf"^ *```{language}\n(.*?)^ *```", DOCS[page], re.M | re.S)]


def calls_of(page: str) -> list[list[str]]:
    """The arguments of every call of this program on a page, in order; those in the running text come last."""
    blocks = "".join(blocks_of(page, "sh")) + re.sub(
        r"^(?:[^$].*|\$ )", "", "".join(blocks_of(page, "console")), flags=re.M
    )
    blocks = re.sub(r"<<'(\w+)'\n.*?^\1$", "", re.sub(r"\\\n *", "", blocks), flags=re.M | re.S)
    lines = [*blocks.splitlines(), *re.findall(r"`(bilstm-cls [^`]*)`", DOCS[page])]
    calls = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for part in re.split(r"\0[|<>&]+\0", "\0".join(lexer)):
            words = part.split("\0")
            if words[0] == "bilstm-cls" or "bilstm_cls" in words:
                calls.append(
                    words[1 + max(words.index(name) for name in ("bilstm-cls", "bilstm_cls") if name in words) :]
                )
    return calls


@EVERY_PAGE
def test_every_command_of_the_page_has_these_options_and_values(page: str) -> None:
    for call in calls_of(page):
        command, words = typer.main.get_command(cli.app), call
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]  # type: ignore[attr-defined]
        assert not hasattr(command, "commands") or words[0].startswith("-"), f"no such command: {call}"
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in words if re.match(r"--?\w", word)} <= {*known, "--help"}, call
        sets = [text for option, text in itertools.pairwise(words) if option == "--set" and "KEY" not in text]
        shipped = next((ROOT / word for word in words if re.fullmatch(r"configs/[\w-]+\.yaml", word)), None)
        load_config(shipped, sets if shipped else ["data.train=a.csv", *sets])


@EVERY_PAGE
def test_every_script_and_its_options_exist(page: str) -> None:
    for code in re.findall(r"(?<![/\w])(scripts/[^`\n#]*)", DOCS[page]):
        name, *words = code.split()
        script = (ROOT / name.rstrip(",.;:)")).read_text("utf-8")
        assert all(f'"{word}"' in script for word in words if word.startswith("--")), f"{page}: {code}"


def test_every_extra_that_the_docs_name_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {extra for page in DOCS.values() for found in re.findall(r"bilstm-cls\[([\w,]+)\]", page)
             for extra in found.split(",")}  # fmt: skip
    assert named
    assert named <= set(project["optional-dependencies"])


def test_the_index_of_the_docs_links_every_page() -> None:
    pages = {Path(page).name for page in DOCS if page.startswith("docs/")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([\w.-]+\.md)\)", DOCS["docs/README.md"]))


@EVERY_PAGE
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", DOCS[page], flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), f"{page}: {link}"
        headings = re.findall(r"^#+ (.*)", path.read_text("utf-8"), re.M) if anchor else []
        assert not anchor or anchor in [ANCHOR.sub("", head.lower()).replace(" ", "-") for head in headings], link


@pytest.mark.parametrize("page", [page for page in DOCS if "```yaml" in DOCS[page]])
def test_every_config_on_the_page_is_valid(page: str, tmp_path: Path) -> None:
    for block in blocks_of(page, "yaml"):
        if "apiVersion:" in block:  # of Kubernetes
            continue
        (tmp_path / "config.yaml").write_text(block, "utf-8")
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "page",
    ["docs/python.md", "docs/scikit-learn.md", "docs/run-directory.md", "docs/tensorflow.md", "docs/deploy.md", *LSTM],
)
def test_the_python_blocks_of_the_page_run_in_order(
    page: str, trained_run: Path, reviews_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(reviews_csv, "reviews.csv")
    shutil.copy(ROOT / "tests/model/fixtures/tf_classifier_variables.npz", "variables.npz")
    if page == "docs/run-directory.md":
        shutil.copytree(trained_run, "runs/reviews")
    if page == "docs/deploy.md":
        export(trained_run, "imdb-onnx")
    namespace: dict[str, Any] = {}
    for block in blocks_of(page, "python"):
        exec(compile(block, page, "exec"), namespace)


def test_the_tutorial_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the training; tests/test_first_run.py goes on to the server."""
    monkeypatch.chdir(tmp_path)
    page = "docs/tutorial.md"
    (script,) = re.findall(r"<<'END'\n(import csv.*?)\nEND", DOCS[page], re.S)
    exec(compile(script, page, "exec"), {})
    printed = ""
    for words in itertools.takewhile(lambda call: call[0] != "train", calls_of(page)):
        outcome = run_cli(*words)
        assert outcome.code == 0, f"{words}: {outcome.stderr[-1000:]}"
        printed += outcome.stdout
    shown = next(block for block in blocks_of(page, "text") if block.startswith("rows:"))
    assert shown in printed
    made = Path("tickets.yaml").read_text("utf-8")
    assert all(line in made for line in blocks_of(page, "yaml")[0].splitlines())


@functools.cache
def computed(number: str) -> Any:
    return FIGURES["SECTIONS"][number]()


@pytest.mark.parametrize("page", LSTM)
def test_the_lstm_page_quotes_what_the_script_computes(page: str) -> None:
    parts = re.split(r"^## (\d+)\. .*\n", DOCS[page], flags=re.M)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for number, text in sections.items():
        bold = [value for value in re.findall(r"\*\*(.+?)\*\*", text) if value[0].isdigit()]
        found = computed(number) if number in FIGURES["SECTIONS"] else {}  # numbers by what they are, or a block
        assert bold == ([] if isinstance(found, str) else list(found.values())), number
        block = "\n".join(re.findall(r"^```text\n(.*?)\n```", text, re.M | re.S))
        assert block == (found if isinstance(found, str) else ""), number
