// Talk: questions and answers, about a picture or without one.
import { dataUrl, lines } from "./api.js";
import { $, droppable, el, fail, meter, showIn } from "./dom.js";
import { namesHere, offerNames } from "./names.js";

let picture = null;
let earlier = [];
let meant = [];

export function begin() {
  droppable($("talkdrop"), $("talkfile"), ([file]) => look(file));
  $("talkclear").addEventListener("click", () => look(null));
  $("asking").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
}

export function update(studio) {
  const names = namesHere(studio);
  meant = meant.filter((name) => names.includes(name));
  offerNames($("question"), $("talknames"), names);
}

/** Talk about this picture from now on. */
export async function look(file) {
  picture = file ? await dataUrl(file) : null;
  earlier = [];
  meant = [];
  showIn($("talkdrop"), picture);
  $("talkclear").hidden = !picture;
}

async function ask() {
  const question = $("question").value.trim();
  if (!question) return;
  $("question").value = "";
  const thread = $("thread");
  thread.append(el("div", { class: "turn mine" }, question));
  const text = el("span", {}, "…");
  const answer = el("div", { class: "turn theirs" }, text);
  thread.append(answer);
  thread.scrollTop = thread.scrollHeight;
  let answered = "";
  const talk = earlier; // another picture begins another
  const mentioned = [...question.matchAll(/<([A-Za-z][\w-]*)>/g)].map((match) => match[1].toLowerCase());
  const body = { question, earlier: earlier.slice(-6), concepts: mentioned.length ? [] : meant };
  if (picture) body.image = picture;
  try {
    await lines("/api/ask", body, (event) => {
      if (event.event === "waiting" && event.position) text.textContent = `waiting, ${event.position} before it`;
      if (event.event === "piece") text.textContent = (answered += event.text).trim();
      if (event.event === "answer") finish(answer, text, event);
      thread.scrollTop = thread.scrollHeight;
    });
    talk.push([question, text.textContent]);
    if (mentioned.length && talk === earlier) meant = mentioned;
  } catch (error) {
    answer.classList.add("wrong");
    text.textContent = error.message;
    if (error.hint) answer.append(el("span", { class: "grounds" }, error.hint));
    if (!error.status) fail(error);
  }
}

function finish(answer, text, event) {
  text.textContent = event.answer || "(nothing)";
  if (event.verdict) {
    text.hidden = true; // the badge says it
    const share = event.probability;
    const bar = meter("Probability of yes");
    bar.set(share);
    answer.append(el("div", { class: "verdict" },
      el("span", { class: `badge ${event.verdict.replace(" ", "-")}` }, event.verdict), bar.node, el("span", {}, `${Math.round(100 * share)} % yes`)));
  }
  const grounds = {
    facts: "from what you wrote",
    tokens: "from what it learned; it may be wrong",
    model: "from the model alone; it may be wrong",
    score: "compared with the photos it learned from",
    unknown: "nobody told it, and it is not sure",
  };
  answer.append(el("span", { class: "grounds" }, grounds[event.source] || event.source));
}
