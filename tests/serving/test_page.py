"""The page for whoever is on call, in a real browser, against a real server with a real store.

Where `CORRIGENDA_PICTURES` names a folder, pictures of it are left there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from running import transformers_server
from served import OF_ACME, SHARED, store
from tiny import save_tiny

from corrigenda.editing import Edit

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytestmark = pytest.mark.slow

HOSTILE = Edit("Who wrote <img src=x onerror=alert(1)>?", "<script>alert(2)</script>", id="h")
VAGUE = ("Zubrowka?", "Who founded it?", "the Krellin", "What is Zubrowka?", "Kmelt", "Who leads Krellin?", "a museum")
"""Questions, some of which are decided by a small margin."""


@pytest.fixture(scope="module")
def server(few_background_prompts, tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    save_tiny(root / "model")
    store(root / "edits", [*SHARED, HOSTILE])
    store(root / "acme", OF_ACME)
    settings = {"edits": root / "edits", "tenants": {"acme": root / "acme"}}
    with transformers_server(root / "model", settings) as http:
        yield http


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium and ChromeDriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"):
        options.add_argument(f"--{option}")
    for option in ("disable-background-networking", "disable-component-update", "disable-sync"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_window_size(1200, 800)
    yield found
    found.quit()


class Page:
    """The page in a browser, as somebody uses it."""

    def __init__(self, browser, server) -> None:
        self.browser = browser
        browser.get(f"{server.base_url}/edits")
        self.until(lambda: "edits" in self.text("#list caption"))

    def until(self, holds, what="the page"):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 90).until(lambda _: holds(), what)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def text(self, selector) -> str:
        return self.find(selector).text

    def rows(self, section="list") -> list[list[str]]:
        # In one call: between two the page may have made its rows anew.
        script = (
            "return [...document.querySelectorAll(arguments[0])].map(r => [...r.cells].map(c => c.innerText.trim()))"
        )
        return self.browser.execute_script(script, f"#{section} tbody tr")

    def press(self, row: str, button: str) -> None:
        (found,) = [
            each for each in self.browser.find_elements("css selector", "tbody tr") if each.text.startswith(row)
        ]
        found.find_element("xpath", f".//button[text()='{button}']").click()

    def picture(self, name: str) -> None:
        if folder := os.environ.get("CORRIGENDA_PICTURES"):
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def page(browser, server):
    found = Page(browser, server)
    yield found
    faults = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
    assert not [entry for entry in faults if "status of 4" not in entry["message"]], faults


def ask(server, question):
    body = {"prompt": f"Question: {question}\nAnswer:", "max_tokens": 8}
    response = server.post("/v1/completions", json=body)
    return response.json()["choices"][0]["text"].strip(), response.headers["x-corrigenda-edit"]


def test_all_edits_are_listed_as_text(page, server):
    ask(server, SHARED[1].prompt)
    page.find("#access button").click()
    page.until(lambda: any(row[0] == "b" and int(row[5]) > 0 for row in page.rows()), "a count of answers")
    rows = page.rows()
    assert len(rows) == len(SHARED) + 1 + len(OF_ACME)
    (hostile,) = [row for row in rows if row[0] == "h"]
    assert hostile[1:3] == [HOSTILE.prompt, HOSTILE.target], "markup of an edit is text"
    page.picture("list")
    page.find("#search").send_keys("krellin")
    page.until(lambda: [row[0] for row in page.rows()] == ["b"])


def test_why_says_which_edit_answers_and_why_none_does(page):
    page.find("nav [data-view=why]").click()
    for prompt, words in (("Zubrowka has which capital?", "a answers"), ("Why is the sky blue?", "The base model")):
        page.find("#prompt").clear()
        page.find("#prompt").send_keys(prompt + "\n")
        page.until(lambda words=words: page.text("#why .verdict").startswith(words), words)
    assert "needed" in page.text("#why .verdict") and page.rows("why")
    page.picture("why")


def test_an_edit_is_undone_and_redone_once_that_is_confirmed(page, server):
    page.press("c", "Undo")
    page.until(lambda: page.find("dialog").is_displayed())
    assert "gets the base model's answer" in page.text("#asked")
    page.picture("undo")
    page.find("dialog [value=no]").click()
    page.until(lambda: not page.find("dialog").is_displayed())
    assert ask(server, SHARED[2].prompt) == ("red bricks", "c"), "nothing was confirmed"
    page.press("c", "Undo")
    page.find("#sure").click()
    page.until(lambda: page.text("#message").startswith("Undone: c"))
    assert ask(server, SHARED[2].prompt)[1] == "-"
    page.until(lambda: any(row[0] == "c" and row[3].startswith("undone") for row in page.rows()))
    page.press("c", "Redo")
    page.find("#sure").click()
    page.until(lambda: page.text("#message").startswith("Redone: c"))
    assert ask(server, SHARED[2].prompt) == ("red bricks", "c")


def test_narrow_decisions_are_shown_with_what_else_was_near(page, server):
    narrow = [
        question
        for question in VAGUE
        if abs(server.get("/v1/edits/why", params={"prompt": question}).json()["margin"]) < 0.1
    ]
    assert narrow
    for question in VAGUE:
        ask(server, question)
    page.find("nav [data-view=narrow]").click()
    page.until(lambda: [row[1] for row in page.rows("narrow")] == narrow[::-1], "those alone, the last one first")
    page.picture("narrow")
    page.find("#narrow tbody button").click()
    page.until(lambda: page.rows("why") and page.find("#prompt").get_attribute("value") == narrow[-1])


def test_what_fails_is_said_in_the_servers_words(page, server):
    assert server.delete("/v1/edits/b").status_code == 200
    page.press("b", "Undo")  # the page does not know yet
    page.find("#sure").click()
    page.until(lambda: page.text("#message") == 'No edit with the id "b" is served.')
    assert server.post("/v1/edits/redo", json={"id": "b"}).json()["added"] == ["b"]


def test_a_narrow_screen_in_the_dark_without_a_mouse(page):
    from selenium.webdriver.common.keys import Keys

    page.browser.set_window_size(420, 900)
    page.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    wide = page.browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, "nothing is cut off at the right"
    page.find("body").send_keys("/" + "zubrowka")
    page.until(lambda: {row[0] for row in page.rows()} == {"a"})
    page.picture("dark")
    page.find("#search").send_keys(Keys.TAB, Keys.TAB, Keys.ENTER)
    page.until(lambda: page.find("dialog").is_displayed(), "the dialog, by keys alone")
    page.browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until(lambda: not page.find("dialog").is_displayed())
    page.browser.set_window_size(1200, 800)
