"""The server's page in a browser: questions, answers that stream, Stop, and what it looks like, wide and narrow.

`bench/serve_clients.py` runs this in an environment that has playwright; pictures are left in the folder PICTURES.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

STORY = "Write a very long story about a spider and the sea, in twenty chapters."
ROWS = ("header > *", "body > *", "#messages > *", "#form > *", "#key-form > *")
CROSSING = """(rows) => {
  const found = [];
  if (document.documentElement.scrollWidth > innerWidth) found.push("wider than the window");
  for (const row of rows) {
    const seen = [...document.querySelectorAll(row)].map((each) => [each, each.getBoundingClientRect()])
      .filter(([, box]) => box.width && box.height);
    for (const [each, box] of seen) {
      const name = `${row} ${each.id || each.className || each.tagName}`;
      if (box.left < 0 || box.right > innerWidth + 0.5) found.push(`${name} is cut off`);
      if (each.scrollWidth > each.clientWidth + 1 && each.tagName !== "SELECT") found.push(`${name} has more`);
      for (const [other, over] of seen) {
        if (each !== other && box.left < over.right - 0.5 && over.left < box.right - 0.5
          && box.top < over.bottom - 0.5 && over.top < box.bottom - 0.5) found.push(`${name} lies over another`);
      }
    }
  }
  return found;
}"""
"""What lies over another part of the page, or outside the window."""


def until(condition: Callable[[], Any]) -> None:
    """Waits until something holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def look(page: Page, name: str) -> None:
    """Takes a picture, and checks that nothing is cut off or lies over something else."""
    page.screenshot(path=Path(os.environ["PICTURES"], f"{name}.png"))
    crossing = page.evaluate(CROSSING, list(ROWS))
    assert not crossing, (name, crossing)


def talk(page: Page) -> None:
    """Asks twice and stops the second answer."""
    answers, send, stop = page.locator(".assistant"), page.locator("#send"), page.locator("#stop")
    field, about = page.locator("#input"), page.locator(".about")
    small = field.bounding_box()["height"]
    field.press_sequentially(os.environ["QUESTION"])
    page.keyboard.press("Enter")
    stop.wait_for(state="visible")
    lengths = set()
    while not send.is_visible():
        lengths.add(len(answers.first.inner_text()))
    assert len(lengths) > 2, "the answer came in one piece"
    assert "tokens, " in about.first.inner_text()
    field.press_sequentially("First line")
    page.keyboard.press("Shift+Enter")
    field.press_sequentially(STORY * 4)
    assert field.bounding_box()["height"] > 2 * small
    send.click()
    assert abs(field.bounding_box()["height"] - small) < 1
    until(lambda: answers.count() == 2 and answers.nth(1).inner_text())
    seen = answers.nth(1).inner_text()
    until(lambda: answers.nth(1).inner_text() != seen)
    look(page, "streaming")
    stop.click()
    send.wait_for(state="visible")
    seen = answers.nth(1).inner_text()
    time.sleep(0.5)
    assert answers.nth(1).inner_text() == seen
    assert about.nth(1).inner_text() == "stopped"


def read_back(page: Page) -> None:
    """Who scrolls up while an answer comes is left there; who does not sees its end."""
    field, stop = page.locator("#input"), page.locator("#stop")
    messages = "document.getElementById('messages')"
    at = f"{messages}.scrollTop"
    left = f"{messages}.scrollHeight - {messages}.clientHeight - {at}"
    field.fill(STORY)
    page.keyboard.press("Enter")
    until(lambda: page.evaluate(at) > 0)
    answer = page.locator(".assistant").last
    seen = answer.inner_text()
    until(lambda: len(answer.inner_text()) > len(seen) + 200)
    assert page.evaluate(left) < 40
    page.evaluate(f"{at} = 0")
    seen = answer.inner_text()
    until(lambda: len(answer.inner_text()) > len(seen) + 100)
    assert page.evaluate(at) == 0
    stop.click()
    page.locator("#send").wait_for(state="visible")


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.set_default_timeout(60_000)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(os.environ["BASE"].removesuffix("v1"))
        page.wait_for_selector("#model option", state="attached")
        assert [each.inner_text() for each in page.locator("#model option").all()] == ["model", "tools"]
        look(page, "empty")
        talk(page)
        look(page, "page")
        page.set_viewport_size({"width": 320, "height": 560})
        look(page, "narrow")
        read_back(page)
        page.emulate_media(color_scheme="dark")
        look(page, "narrow-dark")
        assert not wrong, wrong
        answer = {"error": {"message": "an API key is needed: Authorization: Bearer KEY"}}
        page.route("**/v1/models", lambda route: route.fulfill(status=401, json=answer))
        page.reload()
        page.locator("#key-form").wait_for(state="visible")
        look(page, "key")


if __name__ == "__main__":
    main()
