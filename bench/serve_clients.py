"""Other people's clients against `gossamer serve`: each shows what the server itself answers, field by field.

    python bench/serve_clients.py [--model MODEL] [--clients openai litellm langchain npm page]

The server is asked plainly first: a whole answer, three drawn ones, log-probabilities, an answer that is held to a
schema, a call of a tool, and an answer to what the tool told. Each client then asks the same, whole and streamed, the
Python ones side by side in asyncio, too, and must show the same fields. Tools are those of the model under another
template, since it has to have a form for them.

Each client is installed into an environment of its own under --work, which takes a minute the first time: openai,
litellm and langchain-openai with pip, openai with npm, playwright with pip for the page, which needs --chromium
(Debian's package chromium) and leaves pictures there. What fails is told, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import httpx2 as httpx

QUESTION = "What is the capital of France?"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
WEATHER = {
    "name": "weather",
    "description": "Tells the weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Tools in the form of Hermes."""

ASKED: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
CALLED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome","days":2}'}}
TOLD = [
    *ASKED,
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "call_1", "content": "Sun"},
]
TOOLS: dict[str, Any] = {"model": "tools", "tools": [{"type": "function", "function": WEATHER}], "temperature": 0}
BODIES: dict[str, dict[str, Any]] = {
    "whole": {"model": "model", "messages": ASKED, "temperature": 0, "max_tokens": 24},
    "three": {"model": "model", "messages": ASKED, "temperature": 1, "max_tokens": 8, "n": 3, "seed": 1},
    "likely": {
        "model": "model",
        "messages": ASKED,
        "temperature": 0,
        "max_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
    },
    "held": {
        "model": "model",
        "messages": ASKED,
        "temperature": 0,
        "max_tokens": 24,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
    },
    "call": {
        **TOOLS,
        "messages": ASKED,
        "max_tokens": 64,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    },
    "told": {**TOOLS, "messages": TOLD, "max_tokens": 8},
}

FIELDS = """
import asyncio, json, os
base, bodies, expected = os.environ["BASE"], json.loads(os.environ["BODIES"]), json.loads(os.environ["EXPECTED"])
def fields(answer):
    choices = [{
        "index": each["index"], "finish": each["finish_reason"], "role": each["message"]["role"],
        "content": each["message"]["content"] or "",
        "calls": [[call["type"], call["function"]["name"], call["function"]["arguments"]]
                  for call in each["message"].get("tool_calls") or []],
        "ids": all(call["id"] for call in each["message"].get("tool_calls") or []),
        "likely": [[token["token"], token["bytes"], token["logprob"],
                    [[top["token"], top["bytes"], top["logprob"]] for top in token["top_logprobs"]]]
                   for token in (each.get("logprobs") or {}).get("content") or []],
    } for each in answer["choices"]]
    usage = answer["usage"]
    return {"choices": choices, "model": answer["model"], "usage": [
        usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]]}
def joined(chunks):
    choices, whole = {}, {}
    for chunk in chunks:
        whole["model"] = chunk["model"]
        whole["usage"] = chunk.get("usage") or whole.get("usage")
        for each in chunk["choices"]:
            one = choices.setdefault(each["index"], {
                "index": each["index"], "finish_reason": None, "logprobs": {"content": []},
                "message": {"role": None, "content": "", "tool_calls": []}})
            delta, message = each["delta"], one["message"]
            message["role"] = message["role"] or delta.get("role")
            message["content"] += delta.get("content") or ""
            message["tool_calls"] += delta.get("tool_calls") or []
            one["logprobs"]["content"] += (each.get("logprobs") or {}).get("content") or []
            one["finish_reason"] = one["finish_reason"] or each["finish_reason"]
    return fields({**whole, "choices": [choices[index] for index in sorted(choices)]})
def check(name, found):
    wanted = fields(expected[name])
    assert found == wanted, (name, found, wanted)
streamed = {"stream": True, "stream_options": {"include_usage": True}}
"""

OPENAI = """
import openai
client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
for name, body in bodies.items():
    whole = client.chat.completions.create(**body)
    assert whole.object == "chat.completion" and whole.id.startswith("chatcmpl-") and whole.created > 1e9, whole
    assert whole.system_fingerprint.startswith("fp_") and whole.choices[0].message.refusal is None, whole
    check(name, fields(whole.model_dump()))
    chunks = list(client.chat.completions.create(**body, **streamed))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({each.id for each in chunks}) == 1
    check(name, joined([chunk.model_dump() for chunk in chunks]))
async def asynchronously():
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(**body) for body in bodies.values()))
        for name, answer in zip(bodies, answers):
            check(name, fields(answer.model_dump()))
        for name, body in bodies.items():
            stream = await client.chat.completions.create(**body, **streamed)
            check(name, joined([chunk.model_dump() async for chunk in stream]))
asyncio.run(asynchronously())
assert [each.id for each in client.models.list()] == ["model", "tools"]
try:
    client.chat.completions.create(**{**bodies["whole"], "messages": [{"role": "user", "content": "word " * 100000}]})
    raise SystemExit("a prompt that is too long was taken")
except openai.BadRequestError as error:
    assert (error.code, error.param) == ("context_length_exceeded", "messages"), error
"""

LITELLM = """
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm
own = {"api_base": base, "api_key": "none"}
def asked(body):
    return {**body, "model": "openai/" + body["model"], **own}
def shown(found):
    return {**found, "model": found["model"].removeprefix("openai/")}
def pieces(name, chunks):
    found = joined(chunks)
    if name == "three":  # it shows role and end of the first of several streams alone
        for each, own in zip(found["choices"][1:], fields(expected[name])["choices"][1:], strict=True):
            each |= {"role": own["role"], "finish": own["finish"]}
    check(name, shown(found))
for name, body in bodies.items():
    check(name, shown(fields(litellm.completion(**asked(body)).model_dump())))
    pieces(name, [chunk.model_dump() for chunk in litellm.completion(**asked(body), **streamed)])
async def asynchronously():
    answers = await asyncio.gather(*(litellm.acompletion(**asked(body)) for body in bodies.values()))
    for name, answer in zip(bodies, answers):
        check(name, shown(fields(answer.model_dump())))
    for name, body in bodies.items():
        stream = await litellm.acompletion(**asked(body), **streamed)
        pieces(name, [chunk.model_dump() async for chunk in stream])
asyncio.run(asynchronously())
try:
    litellm.completion(**asked({**bodies["whole"], "messages": [{"role": "user", "content": "word " * 100000}]}))
    raise SystemExit("a prompt that is too long was taken")
except litellm.ContextWindowExceededError:
    pass
except litellm.BadRequestError as error:
    assert "context" in str(error), error
"""

LANGCHAIN = """
from typing import Literal
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict
def shown(message):
    about = message.response_metadata
    return {
        "content": message.content, "finish": about["finish_reason"], "model": about["model_name"],
        "calls": [[call["name"], call["args"]] for call in message.tool_calls],
        "likely": [[token["token"], token["logprob"], [top["logprob"] for top in token["top_logprobs"]]]
                   for token in (about.get("logprobs") or {}).get("content") or []],
        "usage": [message.usage_metadata[each] for each in ("input_tokens", "output_tokens", "total_tokens")],
    }
def wanted(name):
    found = fields(expected[name])
    choice = found["choices"][0]
    return {
        "content": choice["content"], "finish": choice["finish"], "model": found["model"], "usage": found["usage"],
        "calls": [[name, json.loads(arguments)] for _, name, arguments in choice["calls"]],
        "likely": [[token, value, [top[2] for top in tops]] for token, _, value, tops in choice["likely"]],
    }
def same(name, message):
    assert shown(message) == wanted(name), (name, shown(message), wanted(name))
def total(chunks):
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole
def chat(body):
    known = {name: body[name] for name in ("model", "temperature", "max_tokens", "n", "seed") if name in body}
    rest = {name: value for name, value in body.items() if name not in known and name != "messages"}
    return ChatOpenAI(base_url=base, api_key="none", stream_usage=True, **known).bind(**rest)
one = {name: body for name, body in bodies.items() if name != "three"}
for name, body in one.items():
    same(name, chat(body).invoke(body["messages"]))
    same(name, total(chat(body).stream(body["messages"])))
async def asynchronously():
    answers = await asyncio.gather(*(chat(body).ainvoke(body["messages"]) for body in one.values()))
    for name, answer in zip(one, answers):
        same(name, answer)
    for name, body in one.items():
        same(name, total([chunk async for chunk in chat(body).astream(body["messages"])]))
asyncio.run(asynchronously())
several = chat(bodies["three"]).bound.generate([[HumanMessage(os.environ["QUESTION"])]]).generations[0]
assert [each.text for each in several] == [each["content"] for each in fields(expected["three"])["choices"]], several
class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    answer: Literal["yes", "no"]
held = chat(bodies["whole"]).bound.with_structured_output(Answer, method="json_schema").invoke(os.environ["QUESTION"])
assert held.answer in ("yes", "no")
class weather(BaseModel):
    "Tells the weather"
    city: Literal["Paris", "Rome"]
    days: int
caller = chat({**bodies["whole"], "model": "tools", "max_tokens": 64}).bound
called = caller.bind_tools([weather], tool_choice="weather")
assert called.invoke(os.environ["QUESTION"]).tool_calls[0]["args"]["city"] in ("Paris", "Rome")
"""

NPM = """
import OpenAI from "openai";
import assert from "node:assert";
const { BASE, BODIES, EXPECTED } = process.env;
const bodies = JSON.parse(BODIES);
const expected = JSON.parse(EXPECTED);
const client = new OpenAI({ baseURL: BASE, apiKey: "none", maxRetries: 0 });
const fields = ({ choices, usage, model }) => ({
  model, usage: [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens],
  choices: choices.map(({ index, finish_reason, message, logprobs }) => ({
    index, finish_reason, role: message.role, content: message.content || "", likely: logprobs?.content ?? [],
    calls: (message.tool_calls ?? []).map((call) => [call.type, call.function.name, call.function.arguments]),
  })),
});
for (const [name, body] of Object.entries(bodies)) {
  const wanted = fields(expected[name]);
  const whole = await client.chat.completions.create(body);
  assert.deepEqual(fields(whole), wanted, name);
  assert.equal(whole.object, "chat.completion");
  const choices = [];
  let last = null;
  for await (const chunk of await client.chat.completions.create({
    ...body, stream: true, stream_options: { include_usage: true } })) {
    last = chunk;
    for (const { index, delta, finish_reason, logprobs } of chunk.choices) {
      choices[index] ??= { index, finish_reason: null, message: { content: "", tool_calls: [] },
        logprobs: { content: [] } };
      const { message } = choices[index];
      message.role ??= delta.role;
      message.content += delta.content ?? "";
      message.tool_calls.push(...(delta.tool_calls ?? []));
      choices[index].logprobs.content.push(...(logprobs?.content ?? []));
      choices[index].finish_reason ??= finish_reason;
    }
  }
  assert.deepEqual(fields({ ...last, choices }), wanted, `${name}, streamed`);
  const helped = await client.chat.completions.stream(body).finalChatCompletion();
  assert.equal(helped.choices[0].message.content || "", wanted.choices[0].content, `${name}, by the helper`);
}
const models = await client.models.list();
assert.deepEqual(models.data.map((model) => model.id), ["model", "tools"]);
await assert.rejects(client.chat.completions.create({ ...bodies.whole, audio: { voice: "x" } }),
  (error) => error.status === 400 && error.param === "audio");
const stopped = client.chat.completions.stream({ ...bodies.whole, max_tokens: 500 });
stopped.on("chunk", () => stopped.abort());
await assert.rejects(stopped.finalChatCompletion());
"""

PIP = {
    "openai": ("openai", OPENAI),
    "litellm": ("litellm", LITELLM),
    "langchain": ("langchain-openai", LANGCHAIN),
    "page": ("playwright", None),
}


def python_client(work: Path, package: str, script: str | None) -> list[str]:
    """Returns the command that runs a script in an environment that has a package, made where it is not there."""
    folder = work / package
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-I", "-m", "pip", "install", "--quiet", package], check=True)
    if script is None:
        return [str(python), "-I", str(Path(__file__).with_name("serve_page.py"))]
    return [str(python), "-I", "-c", FIELDS + script]


def npm_client(work: Path) -> list[str]:
    """Returns the command that runs the script of npm's client."""
    folder = work / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "node_modules" / "openai").exists():
        subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), "openai"], check=True)
    (folder / "client.mjs").write_text(NPM)
    return ["node", str(folder / "client.mjs")]


def with_tools(model: str, folder: Path) -> Path:
    """Makes a folder that has a model's files, and a template that tells of tools."""
    from gossamer.loading import locate

    shutil.copytree(locate(model), folder, copy_function=os.link, ignore=shutil.ignore_patterns("*.jinja"))
    settings = folder / "tokenizer_config.json"
    known = json.loads(settings.read_text())
    settings.unlink()
    settings.write_text(json.dumps({**known, "chat_template": TEMPLATE}))
    return folder


def plain(base: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the server answers."""
    answer = httpx.post(f"{base}/chat/completions", json=body, timeout=120)
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--clients", nargs="+", default=[*PIP, "npm"], choices=[*PIP, "npm"])
    parser.add_argument("--work", type=Path, default=Path("build/clients"))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--threads", default="1")
    args = parser.parse_args()
    work = args.work.resolve()
    commands = {name: npm_client(work) if name == "npm" else python_client(work, *PIP[name]) for name in args.clients}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        tools = with_tools(args.model, Path(folder) / "tools")
        line = [sys.executable, "-m", "gossamer", "serve", "-m", f"model={args.model}", "-m", f"tools={tools}"]
        server = subprocess.Popen([*line, "--port", "0", "--threads", args.threads], stderr=subprocess.PIPE, text=True)
        try:
            failed = asked(server, commands, args)
        finally:
            server.terminate()
            server.wait()
            if server.stderr is not None:
                server.stderr.close()
    return int(bool(failed))


def asked(server: subprocess.Popen[str], commands: dict[str, list[str]], args: argparse.Namespace) -> list[str]:
    """Runs each client against the server; returns those that failed."""
    assert server.stderr is not None
    listening = next(text for text in server.stderr if '"listening"' in text)
    base = json.loads(listening)["url"] + "/v1"
    expected = {name: plain(base, body) for name, body in BODIES.items()}
    known = {"BASE": base, "BODIES": json.dumps(BODIES), "EXPECTED": json.dumps(expected), "QUESTION": QUESTION}
    known |= {"CHROMIUM": args.chromium, "PICTURES": str(args.work.resolve())}
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    failed = []
    for name, command in commands.items():
        done = subprocess.run(command, env={**own, **known}, capture_output=True, text=True, check=False)
        print(f"{name}: {'passed' if done.returncode == 0 else done.stderr.strip()[-2000:]}", flush=True)
        failed += [name] * bool(done.returncode)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
