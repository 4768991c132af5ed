"""The shipped configs: each is valid and says in its head what it is, how to run it and what to expect."""

import re
from pathlib import Path

import pytest

from bilstm_cls.config_file import load_config
from bilstm_cls.data.dataset import load_dataset

AG_NEWS = ["World", "Sports", "Business", "Sci/Tech"]
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid_and_says_what_it_is_how_to_run_it_and_what_to_expect(path: Path) -> None:
    assert load_config(path).name == path.stem
    what, how, expected = path.read_text("utf-8").splitlines()[:3]
    assert re.fullmatch(r"# \S.*\.", what)
    assert how.startswith("# Run: ")
    assert f"bilstm-cls train --config configs/{path.name}" in how
    measured = r"# Expect: accuracy 0\.\d+ .*(minute|seconds).*GB\."
    assert re.fullmatch(rf"{measured}|# Expect: not measured .*\.", expected)


FILES = {
    "thucnews": {
        "thucnews/headlines.txt": "".join(f"头条 {i}\t{i % 2}\n" for i in range(60)),
        "thucnews/class.txt": "finance\nrealty",
    },
    "ag-news": {
        "ag_news_csv/train.csv": "".join(f'"{i % 4 + 1}","Title {i}","A ""story""."\n' for i in range(80)),
        "ag_news_csv/test.csv": '"4","Title","Story"\n',
        "ag_news_csv/names.txt": "\nWorld\nSports\nBusiness\nSci/Tech\n",
    },
}
"""What the data of a config look like, in small."""


@pytest.mark.parametrize(("name", "labels"), [("thucnews", ["finance", "realty"]), ("ag-news", AG_NEWS)])
def test_a_config_reads_data_of_the_form_that_it_is_for(
    name: str, labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, content in FILES[name].items():
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).write_text(content, "utf-8")
    config = load_config(next(path for path in CONFIGS if path.stem == name))
    monkeypatch.chdir(tmp_path)
    dataset = load_dataset(config.data)
    assert dataset.labels == labels
    assert (dataset.counts["skipped"], set(dataset.splits)) == (0, {"train", "valid", "test"})
