"use strict";

const $ = (id) => document.getElementById(id);
let messages = [];
let running = null; // the AbortController of the answer that is being written

const headers = () => {
  const key = sessionStorage.getItem("key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
};

const notice = (text) => {
  $("notice").textContent = text;
  $("notice").hidden = !text;
};

async function refusal(response) {
  if (response.status === 401) $("key-form").hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

function show(className, text) {
  const element = document.createElement("p");
  element.className = className;
  element.textContent = text;
  $("messages").append(element);
  element.scrollIntoView({ block: "end" });
  return element;
}

/* Whether the end of the messages is in sight: who has scrolled up reads there. */
function atEnd() {
  const { scrollHeight, scrollTop, clientHeight } = $("messages");
  return scrollHeight - scrollTop - clientHeight < 32;
}

/* Makes the field as high as its text. */
function fit() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight + 2}px`;
}

async function loadModels() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) return notice(await refusal(response));
    const names = (await response.json()).data.map((model) => model.id);
    $("model").replaceChildren(...names.map((name) => new Option(name, name)));
    $("key-form").hidden = true;
    notice("");
  } catch {
    notice("the server does not answer");
  }
}

/* Gives the objects of a stream of events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

function writing(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("new").disabled = on;
}

async function ask(text) {
  const asked = [...messages, { role: "user", content: text }];
  show("message user", text);
  const answer = show("message assistant", "");
  const about = show("about", "…");
  let content = "", first = 0, tokens = 0, error = "";
  running = new AbortController();
  writing(true);
  notice("");
  try {
    const body = { model: $("model").value, messages: asked, stream: true, stream_options: { include_usage: true } };
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) tokens = event.usage.completion_tokens;
      const piece = event.choices[0]?.delta.content;
      if (!piece) continue;
      first ||= performance.now();
      const follow = atEnd();
      content += piece;
      answer.textContent = content;
      if (follow) about.scrollIntoView({ block: "end" });
    }
  } catch (caught) {
    error = caught.name === "AbortError" ? "stopped" : caught.message;
  }
  const seconds = (performance.now() - first) / 1000;
  about.textContent = error || (tokens > 1 ? `${tokens} tokens, ${((tokens - 1) / seconds).toFixed(0)} a second` : "");
  if (error && error !== "stopped") about.className = "about wrong";
  if (content) messages = [...asked, { role: "assistant", content }];
  running = null;
  writing(false);
  $("input").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("input").value.trim();
  if (!text || running) return;
  $("input").value = "";
  fit();
  ask(text);
});

$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});

$("input").addEventListener("input", fit);

$("stop").addEventListener("click", () => running?.abort());

$("new").addEventListener("click", () => {
  messages = [];
  $("messages").replaceChildren();
  notice("");
  $("input").focus();
});

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("key").value = "";
  loadModels();
});

loadModels();
