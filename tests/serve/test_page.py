"""The page of the server in a browser: one types and sees."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bilstm_cls.classifier import Classifier
from bilstm_cls.evaluation.explain import explain
from tests.browser import PHONE, Visit, needs_browser, visit
from tests.serve.served import Address, serving
from tests.serve.untrained import TEXT, untrained

pytestmark = needs_browser

LABELS = [f"{i}: a label with <i>quite</i> a long-winded-name-without-any-room-for-a-break" for i in range(40)]


@pytest.fixture(scope="module")
def server(trained_run: Path) -> Iterator[Address]:
    with serving(Classifier.load(trained_run, device="cpu")) as address:
        yield address


@pytest.fixture(scope="module")
def odd() -> Classifier:
    """Reads characters, twelve of a text, and has many labels."""
    return Classifier(untrained(kind="cjk", labels=LABELS, texts=[TEXT]), device="cpu")


@pytest.fixture(scope="module")
def odd_server(odd: Classifier) -> Iterator[Address]:
    with serving(odd) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Visit]:
    with visit(PHONE) as found:
        yield found


@pytest.fixture
def visitor(browser: Visit) -> Iterator[Visit]:
    """The browser, which must not complain about anything that the test lets happen."""
    yield browser
    browser.page.unroute_all()
    complaints, browser.complaints[:] = list(browser.complaints), []
    assert complaints == []


def type_text(visitor: Visit, text: str) -> None:
    visitor.page.get_by_label("Text", exact=True).fill(text)


def label_is(visitor: Visit, label: str) -> None:
    """Returns once the page shows a label and has coloured the words."""
    visitor.page.wait_for_function("label => document.getElementById('label').textContent === label", arg=label)
    visitor.page.wait_for_selector("#moved[aria-busy=false] #words")


def test_one_types_and_sees_the_label_and_what_moved_it(visitor: Visit, server: Address) -> None:
    page = visitor.page
    page.goto(server.url)
    assert page.locator("#moved").is_hidden()
    visitor.requests.clear()
    page.get_by_label("Text", exact=True).press_sequentially("a good film")
    label_is(visitor, "pos")
    assert page.get_by_role("status").text_content().startswith("pos, ")
    assert page.locator("#bars th").all_text_contents() == ["neg", "pos"]
    assert page.locator("#words .for", has_text="good").count() == 1
    type_text(visitor, "bad: awful & dull")
    label_is(visitor, "neg")
    assert page.locator("#words").text_content() == "bad: awful & dull"
    assert page.locator("#facts").text_content().startswith("5 tokens, ")
    page.locator("#words .for", has_text="awful").click()
    assert page.locator("#pointed").text_content().startswith("awful: changes the logit by +")
    assert {url.removeprefix(server.url) for url in visitor.requests} == {"/predict"}
    type_text(visitor, " ")
    assert page.locator("#label").text_content() == ""
    assert page.locator("#moved").is_hidden()


@pytest.mark.parametrize("text", ["中文 😀 <br />'Straße' ", "\U00020000" * 3, TEXT, "x" * 400])
def test_the_words_are_those_of_the_text_and_what_is_not_read_stands_back(
    visitor: Visit, odd_server: Address, odd: Classifier, text: str
) -> None:
    visitor.page.goto(odd_server.url)
    type_text(visitor, text)
    explanation = explain(odd.loaded, text)
    label_is(visitor, explanation.prediction)
    words = visitor.page.locator("#words")
    assert words.text_content() == text
    assert words.locator("span[data-value]").all_text_contents() == [term.token for term in explanation.terms]
    assert words.locator(".unread").count() == int(odd.predict([text])[0].truncated)
    assert not visitor.is_wider_than_the_screen()


def test_the_page_may_load_nothing_from_elsewhere_and_runs_its_own_script_alone(server: Address) -> None:
    reply = server.ask("/")
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "connect-src 'self'" in policy
    assert b"https:" not in reply.body
