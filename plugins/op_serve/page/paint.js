// Paint: what is remembered first, then the pictures.
import { dataUrl, lines, post, send } from "./api.js";
import { $, droppable, el, fail, number, offerFast, toast } from "./dom.js";
import { namesHere, offerNames } from "./names.js";
import { pending, shot } from "./shot.js";

let trace = null; // what was recalled for the prompt as it stands
let running = null;
let again = null; // the settings of a picture that is to be made again

export function begin(studio) {
  $("prompt").addEventListener("input", () => {
    again = null;
    forget();
  });
  $("prompt").addEventListener("change", () => {
    if (trace && trace.request !== $("prompt").value.trim()) forget();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      $("painting").requestSubmit();
    }
  });
  $("replay").addEventListener("change", forget);
  $("fast").addEventListener("change", () => tellSteps(studio));
  $("stoppaint").addEventListener("click", () => running?.abort());
  $("painting").addEventListener("submit", (event) => {
    event.preventDefault();
    paint(studio).catch(fail);
  });
  droppable($("againdrop"), $("againfile"), ([file]) => recipe(file).catch(fail));
}

export function update(studio) {
  const { backend } = studio.state;
  offerNames($("prompt"), $("paintnames"), namesHere(studio));
  offerFast($("fast"), backend.fast);
  tellSteps(studio);
  $("guidance").placeholder = String(backend.guidance);
  if ($("size").childElementCount !== backend.sizes.length) {
    $("size").replaceChildren(...backend.sizes.map(([width, height]) => el("option", { value: `${width}x${height}` }, `${width} × ${height}`)));
    $("size").disabled = backend.sizes.length < 2;
  }
}

/** A faster way has a number of steps of its own. */
function tellSteps(studio) {
  $("paintsteps").placeholder = $("fast").checked ? "" : String(studio.state.backend.steps);
}

function forget() {
  trace = null;
  $("memory").hidden = true;
  $("dopaint").textContent = "Paint";
}

async function paint(studio) {
  const prompt = $("prompt").value.trim();
  if (!prompt) {
    $("prompt").focus();
    return;
  }
  if (running) return;
  if ($("replay").checked && !trace && !again) {
    $("dopaint").disabled = true;
    $("dopaint").textContent = "Remembering …";
    try {
      trace = await post("/api/recall", { prompt });
    } finally {
      $("dopaint").disabled = false;
      $("dopaint").textContent = "Paint";
    }
    if (trace.steps.length) {
      showMemory(studio);
      return;
    }
  }
  const words = trace?.steps.length ? $("rewritten").value.trim() || prompt : prompt;
  await make(studio, words);
}

async function make(studio, prompt) {
  const count = number($("count")) || 1;
  const body = {
    prompt,
    n: Math.min(count, 8),
    tries: number($("tries")),
    seed: number($("seed")),
    steps: number($("paintsteps")),
    guidance: number($("guidance")),
    fast: Boolean(studio.state.backend.fast) && $("fast").checked,
    size: studio.state.backend.sizes.length > 1 ? $("size").value : undefined,
    replay: false,
    estimates: 8,
    ...(again || {}),
  };
  running = new AbortController();
  $("stoppaint").hidden = false;
  $("dopaint").disabled = true;
  const stop = running;
  const places = Array.from({ length: body.n }, () => pending(null));
  $("painted").prepend(...places.map((place) => place.node));
  places[0].node.scrollIntoView({ block: "nearest" });
  let done = 0;
  try {
    await lines("/api/paint", body, (event) => {
      if (event.event === "picture") {
        const settings = { seed: event.seed, steps: event.about.steps, guidance: event.about.guidance };
        const figure = shot(event, studio, { again: () => fillFrom({ ...event.about, ...settings }) });
        places[done].node.replaceWith(figure);
        done += 1;
      } else if (event.event === "estimate") places[event.picture]?.estimate(event.png);
      else if (event.event === "note") toast(event.text);
      else places.slice(done).forEach((place, index) => (index ? null : place.tell(event)));
    }, stop.signal);
  } catch (error) {
    fail(error);
  } finally {
    places.slice(done).forEach((place) => place.node.remove());
    running = null;
    again = null;
    $("stoppaint").hidden = true;
    $("dopaint").disabled = false;
    studio.look();
  }
}

/** The chain of replay as lines that a person may correct. */
function showMemory(studio) {
  const asked = trace.steps.filter((step) => step.stage === "intent");
  const answers = trace.steps.filter((step) => step.stage === "retrieval");
  const rows = answers.map((step, index) => memoryLine(step, index, studio));
  $("lines").replaceChildren(
    el("label", {}, "It asks itself", el("input", { value: asked.map((step) => step.answer).join(" "), readOnly: true })),
    ...rows,
    el("label", {}, "It paints", el("textarea", { id: "rewritten", rows: "2" }, trace.rewritten)));
  $("memory").hidden = false;
  $("dopaint").textContent = "Paint it like this";
  $("dopaint").focus();
}

const ATTRIBUTE = /^what is the (.+) of <([a-z][\w-]*)>\?$/i;

function memoryLine(step, index, studio) {
  const match = ATTRIBUTE.exec(step.prompt);
  const value = step.answer.replace(/^The .+? of <[^>]+> is /, "").replace(/\.$/, "");
  const input = el("input", { value, placeholder: "it does not know", "data-memory": String(index) });
  const from = { facts: "a fact", tokens: "what it learned", model: "the model", nothing: "nowhere", unknown: "nowhere" };
  const keep = el("button", { type: "button", class: "button quiet", hidden: true, onclick: async () => {
    try {
      await send("PUT", `/api/concepts/${match[2]}/facts`, { text: sentence() });
      toast(`<${match[2]}> keeps it: ${sentence()}`);
      keep.hidden = true;
      await studio.refresh();
    } catch (error) {
      fail(error);
    }
  } }, "Keep as fact");
  const sentence = () => `<${match[2]}>'s ${match[1]} is ${input.value.trim()}`;
  input.addEventListener("change", async () => {
    if (!match || !input.value.trim()) return;
    keep.hidden = false;
    try {
      const corrected = await post("/api/recall", { prompt: trace.request, facts: { [match[2]]: [sentence()] } });
      $("rewritten").value = corrected.rewritten;
    } catch (error) {
      fail(error);
    }
  });
  return el("div", { class: "row" }, el("label", { class: "grow" },
    el("span", {}, match ? `${match[2]}'s ${match[1]} ` : "It remembers ", el("span", { class: "badge" }, `from ${from[step.source] || step.source}`)), input), keep);
}

/** Take the settings of a picture that was painted here. */
async function recipe(file) {
  const about = await post("/api/about", file);
  fillFrom(about);
  toast("Its settings are in the fields", "Press Paint to make it again.");
}

function fillFrom(about) {
  forget();
  $("prompt").value = about.rewritten || about.prompt || "";
  $("seed").value = about.seed ?? "";
  $("paintsteps").value = about.steps ?? "";
  $("guidance").value = about.guidance ?? "";
  $("tries").value = 1;
  $("count").value = 1;
  $("fast").checked = Boolean(about.fast);
  again = { concepts: about.concepts || [] };
  if (about.size) again.size = about.size.join("x");
  $("prompt").focus();
}
