"""The shell commands of a page in Markdown, run in a folder as a user would type them, with tiny models.

Ours run in this process, others as they are. What a page takes for granted (a data file, a config, a finished run) is
made when a command first names it.
"""

import contextlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from bilstm_cls.config_file import dump_yaml
from tests.command_line import Outcome, run_cli
from tests.conftest import PRETRAINED, TINY, reviews

OURS = "bilstm-cls"
ADDRESS = "http://127.0.0.1:8000"
OPTIONAL = ("curl", "jq")
"""Programs without which a pipe is run as far as them."""

TINY_SETS = [f"--set={key}" for key in (*TINY, *PRETRAINED, "train.epochs=1", "pretrain.epochs=1")]
FIRST = dict.fromkeys(("train", "pretrain", "tune"), TINY_SETS)
"""Options that are put before those of the page, which win over them."""
LAST = {"tune": ["--trials=1", "--overwrite"], "--seeds": ["--seeds=2"]}
"""Options that are put after those of the page, of a command or beside an option, and win over them."""

ROWS = [{"text": text, "label": label} for text, label in reviews(120)]


def commands_of(page: str) -> list[str]:
    """Returns the shell commands of a page, each with its continued lines or its here-document."""
    commands: list[str] = []
    for language, block in re.findall(r"^ *```(sh|console)\n(.*?)^ *```", page, re.M | re.S):
        lines = iter(textwrap.dedent(block).splitlines())
        for line in lines:
            if language == "console" and not line.startswith("$ "):
                continue  # what was printed
            command = line.removeprefix("$ ")
            while command.endswith("\\"):
                command = command[:-1] + next(lines).strip()
            if found := re.search(r"<<'(\w+)'", command):
                command = "\n".join([command, *iter(lines.__next__, found[1]), ""])
            if command.strip() and not command.startswith("#"):
                commands.append(command)
    unfenced = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    return commands + re.findall(r"^ {4,}((?:bilstm-cls|python) .*)", unfenced, re.M)


def words_of(line: str) -> list[str]:
    """Splits a line as a shell does; what is not quoted of `|`, `<`, `>` and `&` are words of their own."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


@dataclass
class Shell:
    """Runs commands in the working directory.

    Attributes:
        run: a finished run, which stands for those that a page has from elsewhere.
        servers: stops what was started.
    """

    run: Path
    servers: contextlib.ExitStack
    address: str = ADDRESS

    def type(self, command: str) -> Outcome:
        """Runs one command with its pipes and redirections; returns how its last part ended."""
        line, _, document = command.partition("\n")
        words = words_of(re.sub(r"<<'\w+'", "", line))
        outcome = Outcome(0, document, "")
        for stage in _split(words, "|"):
            stdin = outcome.stdout.encode()
            target = None
            if "<" in stage:
                stage, source = stage[:-2], stage[-1]
                _provide_data(Path(source))
                stdin = Path(source).read_bytes()
            if ">" in stage:
                stage, target = stage[:-2], Path(stage[-1])
            if stage[0] in OPTIONAL and shutil.which(stage[0]) is None:
                break
            outcome = self._run(stage, stdin)
            if target is not None:
                target.write_text(outcome.stdout, "utf-8")
            if outcome.code:
                break
        return outcome

    def _run(self, words: Sequence[str], stdin: bytes) -> Outcome:
        if words[0] == OURS:
            self._provide(words)
            if words[1] == "serve":
                self.address = self.servers.enter_context(serving(words[2:]))
                return Outcome(0, "", "")
            return run_cli(*_short(words[1:]), stdin=stdin)
        if words[0] == "cat" and len(words) > 1:
            _provide_data(Path(words[1]))
        if words[:3] == ["python", "-m", "bilstm_cls.runtime"] and not Path(words[3]).exists():
            shutil.copytree(Path("runs", words[3]), words[3])  # carried to the machine that answers
        words = [word.replace(ADDRESS, self.address) for word in words]
        if words[0].startswith("python"):
            words[0] = sys.executable
        done = subprocess.run(words, input=stdin, capture_output=True, timeout=60, check=False)
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    def _provide(self, words: Sequence[str]) -> None:
        """Makes what a command of ours reads and nobody has made."""
        for option, word in itertools.pairwise(words):
            path = Path(word)
            if option in ("-c", "--config") and not path.exists():
                config = yaml.safe_load((self.run / "config.yaml").read_text("utf-8"))
                path.parent.mkdir(exist_ok=True)
                path.write_text(dump_yaml({**config, "name": path.stem, "output_dir": "runs"}), "utf-8")
            elif option == "--run" and not path.exists():
                shutil.copytree(self.run, path)
            elif option in ("--data", "--input"):
                _provide_data(path)
            elif option == "--set" and (
                given := re.fullmatch(r"data\.(train|valid|test|unlabelled)=(.*[a-z].*)", word)
            ):
                _provide_data(Path(given[2]))
        if words[1] in ("eval", "predict", "report", "export", "serve") and "--run" not in words:
            Path("runs").mkdir(exist_ok=True)
            if not any(Path("runs").glob("*/model.safetensors")):
                shutil.copytree(self.run, Path("runs/reviews"))


def _split(words: Sequence[str], mark: str) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word == mark:
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _short(words: Sequence[str]) -> list[str]:
    last = [option for key, options in LAST.items() if key in words for option in options]
    return [words[0], *FIRST.get(words[0], []), *words[1:], *last]


def _provide_data(path: Path) -> None:
    """Writes reviews into a file of the kind that its name says, or into a folder, if nothing is there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in _WRITERS:
        path.write_text("".join(_WRITERS[path.suffix]()), "utf-8")
        return
    for number, row in enumerate(ROWS):
        (path / row["label"]).mkdir(parents=True, exist_ok=True)
        (path / row["label"] / f"{number}.txt").write_text(row["text"], "utf-8")


_WRITERS: dict[str, Callable[[], Iterator[str]]] = {
    ".csv": lambda: (f"{row['text']},{row['label']}\n" for row in ({"text": "text", "label": "label"}, *ROWS)),
    ".jsonl": lambda: (json.dumps(row) + "\n" for row in ROWS),
    ".txt": lambda: (f"{row['text']}\n" for row in ROWS),
}


@contextlib.contextmanager
def serving(options: Sequence[str]) -> Iterator[str]:
    """Starts the server at a free port and gives its address."""
    command = [sys.executable, "-m", "bilstm_cls", "serve", *options, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip() if process.stdout else ""
            assert address.startswith("http"), process.communicate()[1]
            yield address
        finally:
            process.terminate()
            process.communicate(timeout=60)
