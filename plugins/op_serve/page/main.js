// The studio: which view is shown, what is known, and whether the model is awake.
import { get } from "./api.js";
import { $, fail } from "./dom.js";
import * as concepts from "./concepts.js";
import * as teach from "./teach.js";
import * as talk from "./talk.js";
import * as paint from "./paint.js";
import * as edit from "./edit.js";

const VIEWS = { concepts, teach, talk, paint, edit };

export const studio = { state: null, refresh, look, show };

async function refresh() {
  studio.state = await get("/api/state");
  const { state } = studio;
  document.title = `omnipersona studio: ${state.backend.name}`;
  tell(state);
  for (const view of Object.values(VIEWS)) view.update(studio);
}

function tell(state) {
  const busy = state.state === "ready" && state.running;
  const words = {
    loading: `loading ${state.backend.name}`,
    ready: busy ? doing(state.running) : `${state.backend.name} is ready`,
    asleep: `${state.backend.name} is asleep`,
    failed: `${state.backend.name} could not be opened`,
    stopping: "stopping",
  };
  const [dot, text] = $("status").children;
  dot.className = `dot ${busy ? "busy" : state.state}`;
  const waiting = state.waiting ? `, ${state.waiting} waiting` : "";
  const line = words[state.state] + waiting;
  if (text.textContent !== line) text.textContent = line;
}

/** "learning <bo>" says itself what it is; "a picture" is what is being made. */
const doing = (what) => (what.startsWith("learning") ? what : `working on ${what}`);

function show() {
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "concepts";
  for (const key of Object.keys(VIEWS)) $(key).hidden = key !== name;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#${name}`;
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  VIEWS[name].shown?.(studio);
  scrollTo(0, 0);
}

/** What has changed since, on every view. */
async function look() {
  try {
    const state = await get("/api/state");
    const changed = JSON.stringify(state.concepts) !== JSON.stringify(studio.state?.concepts);
    const jobs = state.jobs.map((job) => job.id + job.state).join();
    const before = (studio.state?.jobs || []).map((job) => job.id + job.state).join();
    studio.state = state;
    tell(state);
    if (changed || jobs !== before) for (const view of Object.values(VIEWS)) view.update(studio);
  } catch (error) {
    const [dot, text] = $("status").children;
    dot.className = "dot failed";
    text.textContent = "the server is not there";
  }
}

async function watch() {
  await look();
  setTimeout(watch, document.hidden ? 10000 : 2500);
}

for (const view of Object.values(VIEWS)) view.begin(studio);
addEventListener("hashchange", show);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
refresh()
  .catch(fail)
  .then(() => {
    show();
    document.body.dataset.ready = "yes";
    setTimeout(watch, 2500);
  });
