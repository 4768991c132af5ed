"""The docs are true: every command and every piece of code on them runs, every link and option is there, the config
reference is the schema's, and the numbers on the pages about the LSTM are those that `scripts/figures` prints."""

import contextlib
import functools
import re
import runpy
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bilstm_cls import cli
from bilstm_cls.config_file import load_config
from bilstm_cls.evaluation import plots
from bilstm_cls.files import write_atomic
from tests.command_line import run_cli
from tests.pages import Shell, commands_of, words_of

ROOT = Path(__file__).parent.parent
DOCS = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
}
EXCEPTIONS = {
    "scripts/train": "installs an environment and trains for minutes",
    "scripts/test": "is what runs this test",
    "torchrun --nproc-per-node 4 -m bilstm_cls train -c configs/ag-news.yaml": "needs several GPUs",
    "torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m bilstm_cls train "
    "-c configs/ag-news.yaml": "needs two machines",
    "torchrun --nproc-per-node 2 -m bilstm_cls train -c reviews.yaml": "tests/test_processes.py starts it",
    "python scripts/import-tensorflow checkpoints/model.ckpt-1000 --dump variables.npz": "needs TensorFlow",
    "python scripts/import-tensorflow variables.npz --vocab vocab.txt --labels labels.txt --max-length 11 "
    "-o runs/imported": "tests/test_scripts.py runs it",
    "tensorboard --logdir runs": "goes on until it is stopped",
    "bilstm-cls push --run runs/reviews ada/reviews": "tests/serve/test_hub.py runs it against a server of its own",
    "bilstm-cls pull ada/reviews": "the same",
    'bilstm-cls predict --run hf://ada/reviews "A fine film."': "the same",
    "tail -f comments.log | bilstm-cls predict - | grep ^neg": "goes on until it is stopped",
}
"""Commands that are not run here, without their comments, and why."""

BLANK = '<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt"></svg>'

MAY_FAIL = {"--fail-under": 1}
"""Options whose command may end with another exit code than 0, as the model is tiny."""

PAGES = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("lstm*.md"))}
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "figures"))
MAX_BYTES = 60_000

ON_EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
IN_EVERY_SECTION = pytest.mark.parametrize("number", SCRIPT["SECTIONS"])


@functools.cache
def computed(number: str) -> Any:
    return SCRIPT["SECTIONS"][number]()


def sections_of(page: str) -> dict[str, str]:
    """Returns what stands under each numbered heading."""
    parts = re.split(r"^## (\d+)\. .*\n", PAGES[page], flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks_of(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```", text, re.M | re.S)


def numbers_of(text: str) -> list[str]:
    return [bold for bold in re.findall(r"\*\*(.+?)\*\*", text) if bold[0].isdigit()]


def pictures_of(page: str) -> list[str]:
    return re.findall(r"!\[[^]]+\]\(figures/([^)]+)\)", PAGES[page])


def runnable_commands_of(page: str) -> list[str]:
    commands = [re.sub(r"\s+#.*", "", command) for command in commands_of(DOCS[page])]
    return [command for command in commands if command not in EXCEPTIONS and not command.startswith("pip install")]


@pytest.fixture
def shell(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in an empty folder. Plots, nine tenths of a tiny training's time, are left blank: others test them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "save_both", lambda _, path: write_atomic(path.with_suffix(".svg"), BLANK))
    with contextlib.ExitStack() as servers:
        yield Shell(trained_run, servers)


@pytest.mark.parametrize("page", [page for page in DOCS if runnable_commands_of(page)])
def test_every_command_of_the_page_runs(page: str, shell: Shell) -> None:
    for command in runnable_commands_of(page):
        outcome = shell.type(command)
        allowed = {0, *(code for option, code in MAY_FAIL.items() if option in command)}
        assert outcome.code in allowed, f"{page}: {command}\n{outcome.stderr[-1000:]}"
    if page == "docs/tutorial.md":
        assert_shows_what_was_printed(DOCS[page])


def assert_shows_what_was_printed(tutorial: str) -> None:
    """What hangs on the data alone is shown as it is printed; the scores are those of a larger model."""
    assert blocks_of(tutorial, "yaml")[0] == Path("tickets.yaml").read_text("utf-8").strip()
    printed = run_cli("inspect", "-c", "tickets.yaml").stdout.splitlines()
    shown = next(block for block in blocks_of(tutorial, "text") if block.startswith("origin: "))
    assert [line for line in shown.splitlines() if line not in [*printed, "..."]] == []


def test_every_exception_stands_on_a_page() -> None:
    commands = {re.sub(r"\s+#.*", "", command) for page in DOCS.values() for command in commands_of(page)}
    assert set(EXCEPTIONS) - commands == set()


def test_every_extra_that_the_docs_name_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {extra for page in DOCS.values() for extra in re.findall(r"bilstm-cls\[(\w+)\]", page)}
    assert named
    assert named - set(project["optional-dependencies"]) == set()


@pytest.mark.parametrize("page", DOCS)
def test_every_command_and_option_in_the_running_text_exists(page: str) -> None:
    root = typer.main.get_command(cli.app)
    for code in re.findall(r"`(bilstm-cls [^`]*)`", DOCS[page]):
        command: Any = root
        for word in words_of(code)[1:]:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
            elif word.startswith("-"):
                known = {option for parameter in command.params for option in parameter.opts}
                assert word in {*known, "--help", "-h"}, f"{page}: {code}"
            else:
                assert command is not root, f"{page}: {code}"


@pytest.mark.parametrize("page", DOCS)
def test_every_script_and_its_options_in_the_running_text_exist(page: str) -> None:
    for code in re.findall(r"`(scripts/[^`]*)`", DOCS[page]):
        name, *words = code.split()
        script = (ROOT / name).read_text("utf-8")
        assert [word for word in words if word.startswith("-") and f'"{word}"' not in script] == [], f"{page}: {code}"


@pytest.mark.parametrize("page", DOCS)
def test_no_block_of_commands_is_in_a_language_that_is_not_run(page: str) -> None:
    languages = set(re.findall(r"^ *```(\w+)", DOCS[page], re.M))
    assert languages <= {"sh", "console", "python", "yaml", "text", "ini"}


def test_the_index_of_the_docs_leads_to_every_page() -> None:
    pages = {Path(page).name for page in DOCS if page.startswith("docs/")} - {"README.md"}
    assert pages - set(re.findall(r"\]\(([\w.-]+\.md)\)", DOCS["docs/README.md"])) == set()


@pytest.mark.parametrize("page", DOCS)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", DOCS[page], flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        path = ROOT / page if not name else ((ROOT / page).parent / name).resolve()
        assert path.exists(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text("utf-8"), re.M)
            anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{page}: {link}"


@pytest.mark.parametrize("page", [page for page in DOCS if page != "docs/tutorial.md" and "```yaml" in DOCS[page]])
def test_every_config_on_the_page_is_valid(page: str, tmp_path: Path) -> None:
    for block in blocks_of(DOCS[page], "yaml"):
        (tmp_path / "config.yaml").write_text(block, "utf-8")
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("page", ["docs/python.md", "docs/run-directory.md"])
def test_every_python_block_of_the_page_on_python_runs(page: str, shell: Shell, reviews_csv: Path) -> None:
    shutil.copy(reviews_csv, "reviews.csv")
    if page == "docs/run-directory.md":
        shutil.copytree(shell.run, "runs/reviews")
    namespace: dict[str, Any] = {}
    for block in blocks_of(DOCS[page], "python"):
        exec(compile(block, page, "exec"), namespace)


def test_there_is_a_page_in_english_and_one_in_chinese() -> None:
    assert list(PAGES) == ["lstm.md", "lstm.zh.md"]


@ON_EVERY_PAGE
def test_every_python_block_of_the_page_runs(page: str) -> None:
    blocks = blocks_of(PAGES[page], "python")
    assert blocks
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, f"docs/{page}", "exec"), namespace)


@ON_EVERY_PAGE
def test_the_page_has_the_sections_that_the_script_prints(page: str) -> None:
    assert list(sections_of(page)) == list(SCRIPT["SECTIONS"])


@IN_EVERY_SECTION
def test_the_pages_quote_what_the_script_prints(number: str) -> None:
    expected = [fact.value for fact in computed(number).facts]
    quoted = {page: numbers_of(sections_of(page)[number]) for page in PAGES}
    assert quoted == dict.fromkeys(PAGES, expected)


@IN_EVERY_SECTION
def test_a_block_of_numbers_stands_on_the_pages_as_the_script_prints_it(number: str) -> None:
    blocks = {page: "\n".join(blocks_of(sections_of(page)[number], "text")) for page in PAGES}
    assert blocks == dict.fromkeys(PAGES, computed(number).block)


@ON_EVERY_PAGE
def test_no_number_in_bold_stands_outside_the_sections(page: str) -> None:
    in_sections = [bold for text in sections_of(page).values() for bold in numbers_of(text)]
    assert numbers_of(PAGES[page]) == in_sections


@ON_EVERY_PAGE
def test_the_page_shows_every_picture_once_and_each_is_small(page: str) -> None:
    assert pictures_of(page) == list(SCRIPT["FIGURES"])
    for name in pictures_of(page):
        assert 1000 < (ROOT / "docs" / "figures" / name).stat().st_size < MAX_BYTES


def test_the_script_prints_every_number_and_draws_every_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["figures", "--output", str(tmp_path / "figures")])
    SCRIPT["main"]()
    printed = capsys.readouterr().out
    expected = [f"{fact.value}  {fact.words}\n" for number in SCRIPT["SECTIONS"] for fact in computed(number).facts]
    assert [line for line in expected if line not in printed] == []
    drawn = {path.name: path.stat().st_size for path in (tmp_path / "figures").iterdir()}
    assert set(drawn) == set(SCRIPT["FIGURES"])
    assert max(drawn.values()) < MAX_BYTES
