"""The demo page in a browser: started as a Space starts it, and used as a visitor uses it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# ruff: noqa: E402 (the imports below need what is looked for here)
pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from model_folders import ROOT, SHAPE, save_with_tokenizer
from modeling_chinese_modernbert import ChineseModernBertForTokenClassification

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE = 60  # seconds until something on the page is taken not to come


class Visitor:
    """A browser on the page."""

    def __init__(self, browser, address: str):
        self.browser = browser
        self.address = address
        browser.get(address)
        until(lambda: browser.find_elements(By.ID, "fill-run"))

    def element(self, name: str):
        return self.browser.find_element(By.ID, name)

    def tab(self, title: str) -> None:
        (tab,) = [
            tab
            for tab in self.browser.find_elements(By.CSS_SELECTOR, "button[role=tab]")
            if title in tab.text
        ]
        tab.click()

    def write(self, name: str, text: str) -> None:
        """Puts a text into a box at once, as pasting does.

        A box that has only just come may still be given its example, so the text has to stay there
        for two frames.
        """
        box = self.element(f"{name}-text").find_element(By.CSS_SELECTOR, "textarea, input")
        until(
            lambda: self.browser.execute_async_script(
                "const [box, text, done] = arguments;"
                "box.value = text;"
                "box.dispatchEvent(new Event('input', {bubbles: true}));"
                "const stays = () => done(box.value === text);"
                "requestAnimationFrame(() => requestAnimationFrame(stays));",
                box,
                text,
            )
        )

    def run(self, name: str, text: str) -> None:
        self.write(name, text)
        self.element(f"{name}-run").click()

    def drop(self, file: Path) -> None:
        """Gives a file to the search, in place of the one before."""
        place = self.element("search-file")
        for button in place.find_elements(By.CSS_SELECTOR, "button[aria-label=Clear]"):
            button.click()
        until(lambda: place.find_elements(By.CSS_SELECTOR, "input[type=file]"))
        place.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))

    def reads(self, name: str, *parts: str) -> str:
        """Waits until an element shows all of `parts`."""

        def text():
            try:
                content = self.element(name).text
            except StaleElementReferenceException:
                return None
            return content if all(part in content for part in parts) else None

        return until(text, lambda: f"{name} shows {self.element(name).text!r}, not {parts}")

    def requests(self) -> set[str]:
        """Addresses that the browser asked for since the last call."""
        messages = (
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        )
        return {
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        }


def until(true: Callable, otherwise: Callable[[], str] = lambda: "nothing came"):
    """The first result that is true."""
    end = time.monotonic() + PATIENCE
    while not (result := true()):
        assert time.monotonic() < end, otherwise()
        time.sleep(0.05)
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def open_browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,1000"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


@contextlib.contextmanager
def started_page(*arguments: str | Path, folder: Path) -> Iterator[str]:
    """The address of the page, started as a Space starts it; it ends with the block."""
    port = free_port()
    command = [sys.executable, "serving/app.py", "--port", str(port), *map(str, arguments)]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | {"HF_HOME": str(folder), "GRADIO_TEMP_DIR": str(folder / "dropped")},
        )
    try:
        until(
            lambda: listens(port) or server.poll() is not None,
            lambda: f"not started: {(folder / 'log').read_text()}",
        )
        assert server.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def visitor(page_models_made, make_model, tmp_path) -> Iterator[Visitor]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    labels = {"id2label": {0: "PER", 1: "LOC"}, "label2id": {"PER": 0, "LOC": 1}}
    tagger = make_model("eager", ChineseModernBertForTokenClassification, **SHAPE, **labels)
    save_with_tokenizer(tagger, tmp_path / "tagger")
    options = ["--model", page_models_made / "model", "--export", page_models_made / "model-export"]
    options += ["--embedding", page_models_made / "embedding-export"]
    options += ["--entities", tmp_path / "tagger"]
    with started_page(*options, folder=tmp_path) as address:
        browser = open_browser()
        try:
            yield Visitor(browser, address)
        finally:
            browser.quit()


def test_a_visit(visitor, tmp_path):
    fills_masks(visitor)
    shows_words_tokens_and_characters(visitor)
    compares_texts(visitor)
    searches_the_example_file(visitor)
    refuses_bad_files(visitor, tmp_path)
    searches_a_file(visitor, tmp_path)
    dropped = [file for file in (tmp_path / "dropped").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in dropped) == 0  # Gradio leaves empty files
    finds_entities(visitor)
    elsewhere = {
        url
        for url in visitor.requests()
        if not url.startswith((visitor.address, "data:", "blob:", "chrome"))
    }
    assert elsewhere == set()


def fills_masks(visitor: Visitor) -> None:
    visitor.reads("fill-result", "本法自公布之日起", "Mask 1")  # nobody sees an empty page
    visitor.run("fill", "今天[MASK]气很好，我们去[MASK]步。")
    visitor.reads("fill-result", "气很好，我们去", "Mask 1", "Mask 2", "%", "int8", "ms")
    result = visitor.element("fill-result")
    assert len(result.find_elements(By.CSS_SELECTOR, ".filled")) == 2
    assert len(result.find_elements(By.CSS_SELECTOR, ".cm-bar")) == 10

    examples = visitor.element("fill-examples").find_elements(By.CSS_SELECTOR, "button")
    (example,) = [button for button in examples if "请在命令行中" in button.text]
    example.click()
    visitor.reads("fill-result", "以下命令。")

    visitor.run("fill", "[MASK]" + "很长的一句话。" * 3000)
    visitor.reads("fill-result", "The text is too long: its last", "characters were not read")
    visitor.run("fill", "   ")
    visitor.reads("fill-result", "Please enter some text first")
    visitor.run("fill", "没有空格。")
    visitor.reads("fill-result", "There is no [MASK]")
    visitor.run("fill", "<img src=none class=evil>[MASK]")
    visitor.reads("fill-result", "<img src=none class=evil>")
    assert visitor.browser.find_elements(By.CLASS_NAME, "evil") == []


def shows_words_tokens_and_characters(visitor: Visitor) -> None:
    visitor.tab("Word by word")
    visitor.run("judge", "我们去图书馆看书。")
    visitor.reads("judge-result", "图书馆", "Least expected")
    visitor.tab("Tokens")
    visitor.run("cut", "我们去图书馆😊")
    visitor.reads("cut-result", "图书馆", "characters per token", "😊")


def compares_texts(visitor: Visitor) -> None:
    visitor.tab("Similarity")
    visitor.run("compare", "今天下雨。\n今天下雨。\n面条好吃。")
    visitor.reads("compare-result", "1.00", "most alike", "int8")
    assert len(visitor.element("compare-result").find_elements(By.CSS_SELECTOR, "td")) == 9
    visitor.run("compare", "一行")
    visitor.reads("compare-result", "at least two texts")


def searches_the_example_file(visitor: Visitor) -> None:
    visitor.tab("Search")
    visitor.element("search-run").click()
    visitor.reads("search-result", "Please drop a file first")
    examples = visitor.element("search-examples").find_elements(By.CSS_SELECTOR, "button")
    examples[1].click()
    visitor.reads("search-state", "Ready: 12 passages")
    visitor.reads("search-result", "Nearest passages")
    assert len(visitor.element("search-result").find_elements(By.CLASS_NAME, "cm-hit")) == 5
    visitor.write("search", "")
    box = visitor.element("search-text").find_element(By.CSS_SELECTOR, "textarea, input")
    box.send_keys(Keys.ENTER)
    visitor.reads("search-result", "Please enter some text first")
    visitor.element("search-sample").click()
    visitor.reads("search-state", "Ready: 12 passages")


def refuses_bad_files(visitor: Visitor, folder: Path) -> None:
    (folder / "legacy.txt").write_bytes("今天下雨。".encode("gb18030"))
    (folder / "empty.txt").write_bytes(b"")
    with open(folder / "large.txt", "wb") as large:
        large.truncate(5_000_000)
    for name, message in (
        ("legacy.txt", "The file is not UTF-8 text"),
        ("empty.txt", "The file is empty"),
        ("large.txt", "The file is too large (5.0 MB)"),
    ):
        visitor.drop(folder / name)
        visitor.reads("search-state", message)


def searches_a_file(visitor: Visitor, folder: Path) -> None:
    (folder / "notes.txt").write_text("猫在树上。\n图书馆周一不开门。\n", encoding="utf-8")
    visitor.drop(folder / "notes.txt")
    visitor.reads("search-state", "Ready: 2 passages")
    visitor.run("search", "猫在树上。")
    visitor.reads("search-result", "1.00", "猫在树上")


def finds_entities(visitor: Visitor) -> None:
    visitor.tab("Entities")
    visitor.run("label", "李明上个月调到了上海。")
    visitor.reads("label-result", "李", "上海", "PyTorch")
    entities = visitor.element("label-result").find_elements(By.CSS_SELECTOR, ".cm-entity small")
    assert {entity.text for entity in entities} <= {"PER", "LOC"} and entities
