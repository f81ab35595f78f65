/* The chat page: asks v1/chat/completions and shows the answer as it comes.
 *
 * Nothing that a model or a user writes is ever run as HTML: it becomes text
 * nodes and form values alone, and trusted types may forbid the rest.
 */

// Each text in English and Chinese.
const TEXTS = {
  skip: ["Skip to the message", "跳到输入框"],
  model: ["Model and version", "模型与版本"],
  other: ["中文", "EN"],
  other_label: ["切换到中文", "Switch to English"],
  theme: ["Light or dark", "浅色或深色"],
  settings: ["Settings", "设置"],
  fresh: ["New chat", "新对话"],
  conversation: ["Conversation", "对话"],
  welcome: ["What would you like to ask?", "想问点什么？"],
  privacy: ["This browser keeps the conversation.", "对话保存在本浏览器中。"],
  message: ["Message", "输入消息"],
  keys: ["Enter sends · Shift+Enter new line · Esc stops", "Enter 发送 · Shift+Enter 换行 · Esc 停止"],
  send: ["Send", "发送"],
  stop: ["Stop", "停止"],
  you: ["You", "你"],
  assistant: ["Answer", "回答"],
  again: ["Answer again", "重新回答"],
  done: ["Close", "关闭"],
  retry: ["Retry", "重试"],
  undo: ["Undo", "撤销"],
  system: ["System prompt", "系统提示"],
  default: ["default", "默认"],
  random: ["random", "随机"],
  temperature: ["Temperature", "温度"],
  max_tokens: ["Tokens at most", "最多词元数"],
  seed: ["Seed", "随机种子"],
  key: ["Key", "密钥"],
  key_hint: ["If the server asks for one; kept in this tab only.", "服务器要求时填写，仅保留在本标签页。"],
  working: ["The answer is being written.", "正在回答。"],
  facts: ["{tokens} tokens · {rate} tokens/s · first after {first} s", "{tokens} 个词元 · {rate} 词元/秒 · 首个用时 {first} 秒"],
  stopped: ["stopped", "已停止"],
  length: ["cut at the length limit", "已达长度上限"],
  lost: ["incomplete", "不完整"],
  unanswered: ["no answer", "没有回答"],
  unsent: ["no longer sent: the context is full", "上下文已满，不再发送"],
  cleared: ["The conversation was cleared.", "对话已清空。"],
  no_model: ["The server offers no model.", "服务器没有可用的模型。"],
  needs_key: ["The server asks for a key: see the settings.", "服务器需要密钥：请在设置中填写。"],
  busy: ["The server is busy: try again in {wait} s. {message}", "服务器繁忙：请在 {wait} 秒后重试。{message}"],
  refused: ["The server refused: {message}", "服务器拒绝了请求：{message}"],
  offline: ["No connection to the server.", "与服务器没有连接。"],
};
const SAMPLER = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
// Far below what every browser keeps for a site.
const MAX_CHARACTERS = 400_000;

const $ = (id) => document.getElementById(id);
const fields = $("fields").elements;
const darkness = matchMedia("(prefers-color-scheme: dark)");
const views = new WeakMap(); // The article of each turn

const choices = { ...loaded("localStorage", "choices") };
let turns = loaded("localStorage", "chat").turns;
let running = null; // AbortController of the answer being written
let notice = null; // What the banner says and offers
let following = true; // The reader is at the end of the log

// ---- What outlives the page. Storage may be full or forbidden, and what
// ---- is read from it is not trusted.

function loaded(storage, key) {
  try {
    return Object(JSON.parse(window[storage].getItem(`kerasgpt.${key}`)));
  } catch {
    return {};
  }
}

function store(storage, key, value) {
  try {
    window[storage].setItem(`kerasgpt.${key}`, JSON.stringify(value));
  } catch {
    // The chat goes on, unkept.
  }
}

function keepChat() {
  let room = MAX_CHARACTERS;
  // A turn without text takes room too; the newest are worth most.
  const first = turns.findLastIndex((turn) => (room -= JSON.stringify(turn).length) < 0);
  store("localStorage", "chat", { turns: turns.slice(first + 1) });
}

function choose(name, value) {
  choices[name] = value;
  store("localStorage", "choices", choices);
}

// ---- Language and colours

function say(name, values = {}) {
  const text = TEXTS[name][document.documentElement.lang === "en" ? 0 : 1];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function label(element, text) {
  element.ariaLabel = element.title = text;
}

function translate(root) {
  for (const element of root.querySelectorAll("[data-text], [data-hint], [data-label]")) {
    const { text, hint, label: name } = element.dataset;
    if (text) element.textContent = say(text);
    if (hint) element.placeholder = say(hint);
    if (name) label(element, say(name));
  }
}

function setLanguage() {
  const isChinese = (choices.language ?? navigator.language).startsWith("zh");
  document.documentElement.lang = isChinese ? "zh-CN" : "en";
  translate(document);
  $("message").placeholder = say("message");
  $("language").textContent = say("other");
  $("language").lang = isChinese ? "en" : "zh-CN";
  label($("language"), say("other_label"));
  tell(notice);
  showBusy();
  turns.forEach(showTurn);
}

function setTheme() {
  document.documentElement.dataset.theme = choices.theme ?? (darkness.matches ? "dark" : "light");
}

// ---- The server

function refusal(status, error, wait) {
  const { message = error ?? `HTTP ${status}`, code } = Object(error);
  return Object.assign(new Error(message), { status, code, wait });
}

async function call(path, options) {
  const headers = { "Content-Type": "application/json" };
  if (fields.key.value && fields.key.validity.valid) headers.Authorization = `Bearer ${fields.key.value}`;
  // A relative path also works below a proxy's prefix.
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw refusal(response.status, body?.error, Number(response.headers.get("Retry-After")));
}

async function loadModels() {
  try {
    const { data } = await (await call("v1/models")).json();
    const chosen = $("model").value || choices.model;
    $("model").replaceChildren(...data.map(({ id }) => new Option(id, id, false, id === chosen)));
    if (!data.length) tell({ name: "no_model", offer: "retry", action: loadModels });
  } catch (error) {
    tellError(error, loadModels);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the stream ended without [DONE]");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// Without unanswered questions: the roles must take turns.
function sentBefore(turn) {
  return turns.filter((other) => other !== turn && !other.unsent && other.answer);
}

function requestBody(turn) {
  const system = fields.system.value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const { question, answer } of sentBefore(turn)) {
    messages.push({ role: "user", content: question }, { role: "assistant", content: answer });
  }
  messages.push({ role: "user", content: turn.question });
  // Without a seed "answer again" might give the same answer.
  const body = { model: $("model").value, messages, seed: Math.floor(Math.random() * 2 ** 31) };
  for (const name of SAMPLER) {
    const { value, validity, valueAsNumber } = fields[name];
    if (value && validity.valid) body[name] = valueAsNumber;
  }
  return JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
}

async function openStream(turn, signal) {
  const all = sentBefore(turn);
  let sent = all;
  for (;;) {
    try {
      return await call("v1/chat/completions", { method: "POST", body: requestBody(turn), signal });
    } catch (error) {
      const isTooLong = error.code === "context_length_exceeded" || error.status === 413;
      // Half at a time: few requests are in vain.
      sent = isTooLong && sent.length ? sent.slice(Math.ceil(sent.length / 2)) : null;
      for (const old of all) {
        old.unsent = Boolean(sent) && !sent.includes(old);
        showTurn(old);
      }
      if (!sent) throw error;
    }
  }
}

async function receive(turn, signal) {
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1000;
  const { status, body } = await openStream(turn, signal);
  for await (const { choices, usage, error } of events(body)) {
    if (error) throw refusal(status, error);
    const { delta, finish_reason: reason } = choices?.[0] ?? {};
    if (delta?.content) {
      turn.first ||= elapsed();
      turn.answer += delta.content;
      views.get(turn).querySelector(".answer").firstChild.appendData(delta.content);
      scroll();
    }
    if (reason) turn.note = reason === "length" ? reason : "";
    if (usage) Object.assign(turn, { tokens: usage.completion_tokens, seconds: elapsed() });
  }
}

async function answer(turn) {
  const before = { ...turn };
  const { signal } = (running = new AbortController());
  // "lost" until proved otherwise: what a reload in between must find.
  Object.assign(turn, { answer: "", note: "lost", tokens: 0, first: 0 });
  following = true;
  tell(null);
  refresh(turn, say("working"));
  try {
    if (!$("model").value) await loadModels();
    if ($("model").value) await receive(turn, signal);
  } catch (error) {
    turn.note = signal.aborted ? "stopped" : "lost";
    if (!signal.aborted) tellError(error, () => answer(turn));
  }
  // Nothing came: the answer that was there is better than nothing.
  if (!turn.answer && before.answer) Object.assign(turn, before);
  running = null;
  refresh(turn, turn.answer || say("unanswered"));
}

function refresh(turn, news) {
  $("announcer").textContent = news;
  keepChat();
  showTurn(turn);
  showBusy();
}

// ---- What is seen and heard

function showTurn(turn) {
  if (!views.has(turn)) addView(turn);
  const view = views.get(turn);
  const isLive = Boolean(running) && turn === turns.at(-1);
  view.classList.toggle("live", isLive);
  // One text node, which then grows.
  view.querySelector(".answer").replaceChildren(document.createTextNode(turn.answer));
  const facts = [];
  const { tokens, seconds, first, note } = turn;
  if (tokens > 0 && seconds > 0) {
    facts.push(say("facts", { tokens, rate: (tokens / seconds).toFixed(1), first: (+first).toFixed(2) }));
  }
  if (!turn.answer && note !== "stopped") facts.push(say("unanswered"));
  else if (Object.hasOwn(TEXTS, note)) facts.push(say(note));
  if (turn.unsent) facts.push(say("unsent"));
  view.querySelector(".facts").textContent = isLive ? "" : facts.join(" · ");
  scroll();
}

function addView(turn) {
  const view = $("turn").content.firstElementChild.cloneNode(true);
  translate(view);
  view.querySelector(".question").textContent = turn.question;
  view.querySelector(".again").onclick = () => {
    $("message").focus();
    answer(turn);
  };
  views.set(turn, view);
  $("log").append(view);
}

function showBusy() {
  const isIdle = !running && !$("message").value.trim();
  $("send").className = `icon ${running ? "stop" : isIdle ? "idle" : ""}`;
  $("send").ariaDisabled = isIdle;
  label($("send"), say(running ? "stop" : "send"));
}

function tell(next) {
  notice = next;
  $("banner").hidden = !notice;
  if (!notice) return;
  $("banner").className = notice.offer === "undo" ? "" : "alarm";
  $("banner").firstElementChild.textContent = say(notice.name, notice);
  $("act").textContent = say(notice.offer);
}

function tellError(error, action) {
  const { status, wait } = error;
  let name = "refused";
  if (!status) name = "offline";
  else if (status === 401) name = "needs_key";
  else if (wait > 0) name = "busy";
  tell({ name, message: error.message, wait, offer: "retry", action });
  // The chosen version may have been retired.
  if (status === 404 && running) loadModels();
}

function scroll() {
  // Once a frame: tokens can come faster than the screen is drawn.
  if (following) requestAnimationFrame(() => $("scroller").scrollTo(0, $("scroller").scrollHeight));
}

function fitMessage() {
  const { style } = $("message");
  style.height = "auto";
  style.height = `${$("message").scrollHeight}px`;
  showBusy();
}

// ---- What the reader does

function send() {
  // Half a character has no UTF-8.
  const question = $("message").value.trim().toWellFormed();
  if (running || !question) return;
  const turn = { question, answer: "" };
  turns.push(turn);
  $("message").value = "";
  fitMessage();
  answer(turn);
}

function clear() {
  running?.abort();
  const old = turns;
  const show = (list) => {
    turns = list;
    $("log").replaceChildren(...turns.map((turn) => views.get(turn)));
    keepChat();
    $("message").focus();
  };
  show([]);
  const action = () => show([...old, ...turns]);
  tell(old.length ? { name: "cleared", offer: "undo", action } : null);
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  if (running) running.abort();
  else send();
};
$("message").oninput = fitMessage;
$("message").onkeydown = (event) => {
  // Enter also ends the choice of a Chinese input method, which must not
  // send; Safari tells it by the key code alone.
  const isComposing = event.isComposing || event.keyCode === 229;
  if (event.key !== "Enter" || event.shiftKey || isComposing) return;
  event.preventDefault();
  send();
};
document.onkeydown = (event) => {
  if (event.key === "Escape" && !event.isComposing && !$("settings").open) running?.abort();
};
$("scroller").onscroll = ({ target }) => {
  following = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
};
$("fresh").onclick = clear;
$("act").onclick = () => {
  const { action } = notice;
  tell(null);
  $("message").focus();
  action();
};
$("language").onclick = () => {
  choose("language", document.documentElement.lang === "en" ? "zh" : "en");
  setLanguage();
};
$("theme").onclick = () => {
  choose("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  setTheme();
};
darkness.onchange = setTheme;
$("model").onchange = ({ target }) => {
  choose("model", target.value);
  // Another model may have a longer context.
  for (const turn of turns) turn.unsent = false;
  turns.forEach(showTurn);
};
$("configure").onclick = () => $("settings").showModal();
$("fields").oninput = ({ target: { name, value, validity } }) => {
  if (!validity.valid) return;
  if (name === "key") store("sessionStorage", "key", { value });
  else choose(name, value);
};
// What is not sent must not look as if it were.
$("settings").onclose = fillFields;
fields.key.onchange = () => {
  tell(null);
  loadModels();
};
window.onpagehide = keepChat;

function fillFields() {
  for (const name of ["system", ...SAMPLER]) {
    fields[name].value = choices[name] ?? "";
    if (!fields[name].validity.valid) fields[name].value = "";
  }
}

for (const name in choices) if (typeof choices[name] !== "string") delete choices[name];
const isTurn = (turn) => typeof turn?.question === "string" && typeof turn.answer === "string";
turns = Array.isArray(turns) ? turns.filter(isTurn) : [];
fields.key.value = loaded("sessionStorage", "key").value ?? "";
fillFields();
setTheme();
setLanguage();
loadModels();
