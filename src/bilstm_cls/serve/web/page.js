"use strict";

// Milliseconds without a keystroke before the server is asked, and more of them before an explanation is asked for.
const PAUSE = 120;
const LONGER_PAUSE = 250;
const SHOWN_LABELS = 10;
const ASKED_LABELS = 200;
const STRONGEST = 10;

const at = (id) => document.getElementById(id);
const field = at("text");
const numLabels = Number(at("bars").dataset.labels);
let turn = 0; // counts changes of the text: an answer to any but the last is dropped
let timer = 0;
let pending = new AbortController();
let showsAll = false;
let lastAnswer = null;

const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const percent = (probability) =>
  (probability < 0.0005 ? "< 0.1" : probability >= 0.9995 ? "> 99.9" : (100 * probability).toFixed(1)) + " %";
const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(3);

function element(name, text, properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text, ...properties });
}

async function ask(question, asked) {
  for (;;) {
    const response = await fetch("predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(numLabels > ASKED_LABELS ? { top_k: ASKED_LABELS, ...question } : question),
      signal: pending.signal,
    });
    const answer = await response.json();
    if (response.ok) return answer.predictions[0];
    if (response.status !== 503) throw new Error(answer.error);
    await wait(1000 * Number(response.headers.get("Retry-After") || 1));
    if (asked !== turn) return null;
  }
}

async function answerTurn(asked) {
  const text = field.value.replace(/\p{Surrogate}/gu, "\ufffd"); // a lone surrogate is no character
  try {
    const started = performance.now();
    const prediction = await ask({ text }, asked);
    if (asked !== turn) return;
    showPrediction(prediction, performance.now() - started);
    await wait(LONGER_PAUSE - PAUSE);
    if (asked !== turn) return;
    const explained = await ask({ text, explain: true }, asked);
    if (asked === turn) showExplanation(explained);
  } catch (error) {
    if (asked !== turn) return;
    at("problem").textContent = error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message;
    at("problem").hidden = false;
  }
}

function showPrediction(prediction, milliseconds) {
  lastAnswer = prediction;
  at("problem").hidden = true;
  const names = labelsOf(prediction);
  const label = names.join(", ") || "no label";
  const probability = names.map((name) => percent(prediction.probabilities[name])).join(", ");
  at("label").textContent = label;
  at("probability").textContent = names.length ? `probability ${probability}` : "";
  at("spoken").textContent = `${label}, ${probability}`;
  const tokens = prediction.tokens.toLocaleString("en");
  const cut = prediction.truncated ? ", more than the model reads" : "";
  const unknown = prediction.unknown_tokens ? `, ${prediction.unknown_tokens.toLocaleString("en")} unknown` : "";
  at("facts").textContent = `${tokens} ${prediction.tokens === 1 ? "token" : "tokens"}${unknown}${cut}, answered in ${milliseconds.toFixed(0)} ms`;
  showBars(prediction);
}

const labelsOf = (prediction) => prediction.labels || [prediction.label]; // a run may give a text several

function showBars(prediction) {
  const names = labelsOf(prediction);
  const all = Object.entries(prediction.probabilities);
  const few = all.length <= SHOWN_LABELS; // each keeps its place; of many, the most probable come first
  if (!few) all.sort(([, one], [, other]) => other - one);
  const shown = few || showsAll ? all : all.slice(0, SHOWN_LABELS);
  const rows = shown.map(([name, probability]) => {
    const row = element("tr", "", { className: names.includes(name) ? "best" : "" });
    const bar = element("td", "", { className: "bar" });
    const length = element("span", "");
    length.style.width = 100 * probability + "%";
    bar.append(length);
    row.append(element("th", name, { scope: "row", dir: "auto" }), bar, element("td", percent(probability)));
    return row;
  });
  at("bars").tBodies[0].replaceChildren(...rows);
  at("more").hidden = few;
  at("more").textContent = showsAll ? `Show ${SHOWN_LABELS} labels` : `Show ${all.length} labels`;
}

function spansOf({ text, truncated, explanation }) {
  // Offsets count characters, not JavaScript's units. Byte-pair tokens that share a character make one span.
  const characters = Array.from(text);
  const merged = [];
  for (const { start, stop, value } of explanation.terms) {
    const last = merged[merged.length - 1];
    if (last && start < last.stop) Object.assign(last, { stop, value: last.value + value });
    else merged.push({ start, stop, value });
  }
  const spans = [];
  let position = 0;
  for (const span of [...merged, { start: characters.length, stop: characters.length }]) {
    if (span.start > position) spans.push({ start: position, stop: span.start });
    if (span.stop > span.start) spans.push(span);
    position = span.stop;
  }
  if (truncated) {
    const gaps = spans.filter((span) => span.value === undefined);
    gaps.reduce((one, other) => (other.stop - other.start > one.stop - one.start ? other : one), gaps[0]).unread = true;
  }
  return spans.map((span) => ({ ...span, text: characters.slice(span.start, span.stop).join("") }));
}

function showExplanation(prediction) {
  [prediction.explanation] = [prediction.explanation].flat(); // of several labels the first
  const { label } = prediction.explanation;
  const spans = spansOf(prediction);
  const valued = spans.filter((span) => span.value !== undefined);
  const strongest = Math.max(...valued.map((span) => Math.abs(span.value)), 0) || 1;
  const colour = (span, strength) => {
    span.className = strength > 0 ? "for" : "against";
    span.style.setProperty("--strength", Math.abs(strength).toFixed(3));
    return span;
  };
  at("words").replaceChildren(
    ...spans.map(({ text, value, unread }) => {
      if (unread) return element("span", text, { className: "unread", title: "not read: the text is longer than the model reads" });
      if (value === undefined) return document.createTextNode(text);
      const span = colour(element("span", text, { title: signed(value) }), value / strongest);
      span.dataset.value = signed(value);
      return span;
    }),
  );
  const legend = [colour(element("span", `for ${label}`), 1), " ", colour(element("span", "against it"), -1)];
  if (spans.some((span) => span.unread)) legend.push(" ", element("span", "not read", { className: "unread" }));
  at("legend").replaceChildren(...legend);
  valued.sort((one, other) => Math.abs(other.value) - Math.abs(one.value));
  at("strongest").tBodies[0].replaceChildren(
    ...valued.slice(0, STRONGEST).map(({ text, value }) => {
      const row = element("tr", "");
      row.append(element("td", text, { dir: "auto" }), element("td", signed(value)));
      return row;
    }),
  );
  at("moved").hidden = valued.length === 0;
  at("moved").setAttribute("aria-busy", "false");
}

function clear() {
  for (const id of ["label", "probability", "facts", "spoken"]) at(id).textContent = "";
  at("bars").tBodies[0].replaceChildren();
  at("more").hidden = at("moved").hidden = at("problem").hidden = true;
}

field.addEventListener("input", () => {
  turn += 1;
  pending.abort();
  pending = new AbortController();
  clearTimeout(timer);
  at("moved").setAttribute("aria-busy", "true");
  if (field.value.trim() === "") clear();
  else timer = setTimeout(answerTurn, PAUSE, turn);
});

at("more").addEventListener("click", () => {
  showsAll = !showsAll;
  showBars(lastAnswer);
});

for (const kind of ["pointerover", "click"]) {
  at("words").addEventListener(kind, ({ target }) => {
    const { value } = target.dataset;
    if (value) at("pointed").textContent = `${target.textContent}: changes the logit by ${value}`;
  });
}

at("command").textContent =
  `curl ${location.origin}/predict -H 'Content-Type: application/json' \\\n  -d '{"texts": ["one text", "another"], "explain": true}'`;
if (field.value) field.dispatchEvent(new Event("input")); // what the browser kept over a reload
