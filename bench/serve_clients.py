"""Other people's clients against `gossamer serve`: each does what the openai client of the tests does, by a script.

    python bench/serve_clients.py [--model MODEL] [--clients litellm langchain npm page]

Each client is installed into an environment of its own under --work, which takes a minute the first time: litellm and
langchain-openai with pip, openai with npm, playwright with pip for the page, which needs --chromium (Debian's package
chromium). What fails is told, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

LITELLM = """
import json, os, litellm
base = dict(model="openai/" + os.environ["MODEL"], api_base=os.environ["BASE"], api_key="none", temperature=0)
asked = [{"role": "user", "content": os.environ["ASKED"]}]
whole = litellm.completion(**base, messages=asked, max_tokens=24)
assert whole.choices[0].message.content == os.environ["EXPECTED"], whole
assert whole.choices[0].finish_reason in ("stop", "length")
assert whole.usage.completion_tokens <= 24 and whole.usage.prompt_tokens > 0
pieces = litellm.completion(**base, messages=asked, max_tokens=24, stream=True)
assert "".join(p.choices[0].delta.content or "" for p in pieces) == os.environ["EXPECTED"]
three = litellm.completion(**{**base, "temperature": 1}, messages=asked, max_tokens=8, n=3, seed=1)
assert len(three.choices) == 3
likely = litellm.completion(**base, messages=asked, max_tokens=4, logprobs=True, top_logprobs=2)
assert len(likely.choices[0].logprobs.content[0].top_logprobs) == 2
schema = {"type": "object", "properties": {"answer": {"enum": ["yes", "no"]}}, "required": ["answer"],
          "additionalProperties": False}
held = litellm.completion(**base, messages=asked, response_format={"type": "json_schema", "json_schema": {
    "name": "answer", "schema": schema, "strict": True}})
assert json.loads(held.choices[0].message.content)["answer"] in ("yes", "no")
try:
    litellm.completion(**base, messages=[{"role": "user", "content": "word " * 100000}])
    raise SystemExit("a prompt that is too long was taken")
except litellm.ContextWindowExceededError:
    pass
except litellm.BadRequestError as error:
    assert "context" in str(error), error
"""

LANGCHAIN = """
import asyncio, os
from typing import Literal
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict
base = dict(model=os.environ["MODEL"], base_url=os.environ["BASE"], api_key="none", max_tokens=24)
chat = ChatOpenAI(**base, temperature=0)
answer = chat.invoke(os.environ["ASKED"])
assert answer.content == os.environ["EXPECTED"], answer
assert answer.usage_metadata["output_tokens"] <= 24
assert "".join(piece.content for piece in chat.stream(os.environ["ASKED"])) == os.environ["EXPECTED"]
answers = asyncio.run(chat.abatch([os.environ["ASKED"]] * 4))
assert [each.content for each in answers] == [os.environ["EXPECTED"]] * 4
class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    answer: Literal["yes", "no"]
held = chat.with_structured_output(Answer, method="json_schema").invoke(os.environ["ASKED"])
assert held.answer in ("yes", "no")
likely = chat.bind(logprobs=True, top_logprobs=2).invoke(os.environ["ASKED"])
assert len(likely.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
"""

NPM = """
import OpenAI from "openai";
import assert from "node:assert";
const { BASE, MODEL, ASKED, EXPECTED } = process.env;
const client = new OpenAI({ baseURL: BASE, apiKey: "none", maxRetries: 0 });
const base = { model: MODEL, messages: [{ role: "user", content: ASKED }], temperature: 0, max_tokens: 24 };
const whole = await client.chat.completions.create(base);
assert.equal(whole.choices[0].message.content, EXPECTED);
assert.ok(whole.usage.completion_tokens <= 24);
let text = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({
  ...base, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, EXPECTED);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
const three = await client.chat.completions.create({ ...base, n: 3, temperature: 1, seed: 1 });
assert.deepEqual(three.choices.map((choice) => choice.index), [0, 1, 2]);
const likely = await client.chat.completions.create({ ...base, logprobs: true, top_logprobs: 2 });
assert.equal(likely.choices[0].logprobs.content[0].top_logprobs.length, 2);
const schema = { type: "object", properties: { answer: { enum: ["yes", "no"] } }, required: ["answer"],
  additionalProperties: false };
const held = await client.chat.completions.create({ ...base, response_format: {
  type: "json_schema", json_schema: { name: "answer", schema, strict: true } } });
assert.ok(["yes", "no"].includes(JSON.parse(held.choices[0].message.content).answer));
const models = await client.models.list();
assert.ok(models.data.some((model) => model.id === MODEL));
await assert.rejects(client.chat.completions.create({ ...base, audio: { voice: "x" } }),
  (error) => error.status === 400 && error.param === "audio");
const stopped = client.chat.completions.stream({ ...base, max_tokens: 500 });
stopped.on("chunk", () => stopped.abort());
await assert.rejects(stopped.finalChatCompletion());
"""

PAGE = """
import os, time
from playwright.sync_api import sync_playwright
def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 900, "height": 700})
    wrong = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(os.environ["BASE"].removesuffix("v1"))
    page.wait_for_selector("#model option", state="attached")
    answers, send, stop = page.locator(".assistant"), page.locator("#send"), page.locator("#stop")
    page.locator("#input").fill(os.environ["ASKED"])
    page.keyboard.press("Enter")
    send.wait_for(state="visible")
    until(lambda: answers.count() == 1 and answers.first.inner_text())
    page.locator("#input").fill("Write a very long story about a spider and the sea, in twenty chapters.")
    send.click()
    until(lambda: answers.count() == 2 and answers.nth(1).inner_text())
    seen = answers.nth(1).inner_text()
    until(lambda: answers.nth(1).inner_text() != seen)
    stop.click()
    send.wait_for(state="visible")
    seen = answers.nth(1).inner_text()
    time.sleep(0.5)
    assert answers.nth(1).inner_text() == seen
    assert page.locator(".about").nth(1).inner_text() == "stopped"
    page.screenshot(path=os.environ["PICTURE"])
    assert not wrong, wrong
"""

PIP = {"litellm": ("litellm", LITELLM), "langchain": ("langchain-openai", LANGCHAIN), "page": ("playwright", PAGE)}
ASKED = "What is the capital of France?"


def python_client(work: Path, package: str, script: str) -> list[str]:
    """Returns the command that runs a script in an environment that has a package, made where it is not there."""
    folder = work / package
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-I", "-m", "pip", "install", "--quiet", package], check=True)
    return [str(python), "-I", "-c", script]


def npm_client(work: Path) -> list[str]:
    """Returns the command that runs the script of npm's client."""
    folder = work / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "openai").exists():
        subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), "openai"], check=True)
    (folder / "client.mjs").write_text(NPM)
    return ["node", str(folder / "client.mjs")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--clients", nargs="+", default=[*PIP, "npm"], choices=[*PIP, "npm"])
    parser.add_argument("--work", type=Path, default=Path("build/clients"))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--threads", default="1")
    args = parser.parse_args()
    commands = {
        name: npm_client(args.work) if name == "npm" else python_client(args.work.resolve(), *PIP[name])
        for name in args.clients
    }
    line = [sys.executable, "-m", "gossamer", "serve", "-m", f"model={args.model}", "--port", "0"]
    server = subprocess.Popen([*line, "--threads", args.threads], stderr=subprocess.PIPE, text=True)
    failed = []
    try:
        assert server.stderr is not None
        listening = next(text for text in server.stderr if '"listening"' in text)
        base = json.loads(listening)["url"] + "/v1"
        import openai

        with openai.OpenAI(base_url=base, api_key="none") as client:
            answer = client.chat.completions.create(
                model="model", messages=[{"role": "user", "content": ASKED}], max_tokens=24, temperature=0
            )
        known = {"BASE": base, "MODEL": "model", "ASKED": ASKED, "EXPECTED": str(answer.choices[0].message.content)}
        known |= {"CHROMIUM": args.chromium, "PICTURE": str(args.work / "page.png")}
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for name, command in commands.items():
            done = subprocess.run(command, env={**own, **known}, capture_output=True, text=True, check=False)
            print(f"{name}: {'passed' if done.returncode == 0 else done.stderr.strip()[-2000:]}", flush=True)
            failed += [name] * bool(done.returncode)
    finally:
        server.terminate()
        server.wait()
        if server.stderr is not None:
            server.stderr.close()
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
