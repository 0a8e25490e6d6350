// Teach: photos in, what will be learned from them, and learning as it goes.
import { get, post, send } from "./api.js";
import { $, confirmed, droppable, duration, el, fail, icon, meter, number, svg } from "./dom.js";

let photos = [];
let facts = [];
let draft = null;
let looking = 0;
const jobs = new Map();
const streams = new Map();

export function begin(studio) {
  droppable($("photodrop"), $("photos"), (files) => {
    photos.push(...files.map((file) => ({ file, url: URL.createObjectURL(file) })));
    showPhotos();
    look();
  });
  $("addfact").addEventListener("click", addFact);
  $("newfact").addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      addFact();
    }
  });
  $("kind").addEventListener("change", plan);
  $("newname").addEventListener("input", ready);
  $("newname").addEventListener("change", plan);
  $("teaching").addEventListener("submit", (event) => {
    event.preventDefault();
    learn(studio);
  });
  get("/api/jobs").then((all) => all.forEach((job) => job.state !== "draft" && follow(job, studio))).catch(fail);
}

export function update(studio) {
  const { backend, teaches, jobs: all } = studio.state;
  $("steps").placeholder = String(backend.learn_steps);
  $("photodrop").querySelector("span").textContent = `or choose them; ${backend.name} knows ${backend.pictures}`;
  $("teaching").hidden = !teaches;
  for (const job of all) {
    // another tab may have acted, and what waits is watched from here: a browser has few streams
    if (job.state === "waiting" || jobs.get(job.id)?.state() !== job.state) follow(job, studio);
  }
}

function ready() {
  $("learn").disabled = !(draft && $("newname").value.trim());
}

/** Photos that stay keep their nodes, and with them the focus. */
function showPhotos() {
  const grid = $("photogrid");
  for (const node of [...grid.children]) if (!photos.some((photo) => photo.node === node)) node.remove();
  photos.forEach((photo, index) => {
    if (!photo.node) grid.append(photoView(photo));
    const marks = photo.marks || [];
    const [image, mark, button] = photo.node.children;
    photo.node.className = marks.length ? "flawed" : "";
    photo.node.title = marks.join("; ");
    image.alt = `Photo ${index + 1}`;
    mark.textContent = marks.length ? marks[0].split(",")[0].slice(0, 18) : "";
    mark.hidden = !marks.length;
    button.setAttribute("aria-label", `Take photo ${index + 1} out`);
  });
}

function photoView(photo) {
  const out = () => {
    const index = photos.indexOf(photo);
    URL.revokeObjectURL(photo.url);
    photos.splice(index, 1);
    showPhotos();
    const next = photos[index] || photos[index - 1];
    (next ? next.node.querySelector("button") : $("photos")).focus();
    look();
  };
  photo.node = el("li", {}, el("img", { src: photo.url }), el("em", {}), el("button", { type: "button", onclick: out }, icon("close")));
  return photo.node;
}

async function look() {
  const mine = ++looking;
  const before = draft;
  draft = null;
  ready();
  $("plan").replaceChildren();
  if (before) send("DELETE", `/api/jobs/${before.id}`).catch(() => {});
  if (!photos.length) return;
  $("plan").replaceChildren(el("p", { class: "help" }, "Looking at the photos …"));
  const form = new FormData();
  photos.forEach((photo) => form.append("photos", photo.file, "photo"));
  try {
    const made = await post("/api/drafts", form);
    if (mine !== looking) return;
    draft = made;
    await plan();
  } catch (error) {
    if (mine === looking) $("plan").replaceChildren(told(error));
  }
  ready();
}

const told = (error) => el("ul", { class: "notes" }, el("li", {}, `${error.message}${error.hint ? `. ${error.hint}` : ""}`));

function teaching() {
  return {
    name: $("newname").value.trim().toLowerCase() || "it",
    kind: $("kind").value.trim(),
    facts,
    steps: number($("steps")),
    seed: number($("learnseed")),
    force: $("replace").checked,
  };
}

async function plan() {
  if (!draft) return;
  const mine = looking;
  try {
    const body = teaching();
    const planned = await post(`/api/drafts/${draft.id}/plan`, body);
    if (mine !== looking) return;
    const used = `${planned.photos} ${planned.photos === 1 ? "photo" : "photos"}`;
    photos.forEach((photo, index) => {
      const number = new RegExp(`\\b${String(index + 1).padStart(3, "0")}\\.\\w+`);
      photo.marks = planned.notes.filter((note) => number.test(note)).map((note) => note.replace(/^.*?: /, ""));
    });
    showPhotos();
    $("plan").replaceChildren(
      el("div", { class: "planline" }, el("span", { class: `badge ${planned.photos >= 5 ? "good" : "fair"}` }, used),
        el("span", { class: "badge" }, `${planned.held_out} held out to check`),
        el("span", { class: "badge" }, `${planned.negatives} others to compare`),
        el("span", { class: "badge" }, `${planned.steps} steps`)),
      planned.notes.length
        ? el("ul", { class: "notes" }, ...planned.notes.map((note) => el("li", {}, readable(note)))) : "");
  } catch (error) {
    if (mine === looking) $("plan").replaceChildren(told(error));
  }
}

/** File names here are only numbers. */
const readable = (note) => note.replace(/\b0*(\d+)\.(?:png|jpg|webp|gif|img)\b/g, "photo $1");

function addFact() {
  const text = $("newfact").value.trim();
  if (!text) return;
  facts.push(text);
  $("newfact").value = "";
  showFacts();
  plan();
}

function showFacts() {
  $("facts").replaceChildren(...facts.map((fact, index) => el("li", {}, el("span", {}, fact),
    el("button", { type: "button", "aria-label": `Take out: ${fact}`, onclick: () => {
      facts.splice(index, 1);
      showFacts();
      plan();
    } }, icon("close")))));
}

async function learn(studio) {
  addFact();
  $("learn").disabled = true;
  try {
    const job = await post("/api/jobs", { ...teaching(), draft: draft.id });
    draft = null;
    looking += 1; // a plan under way is of photos that are gone
    photos.forEach((photo) => URL.revokeObjectURL(photo.url));
    photos = [];
    facts = [];
    $("teaching").reset();
    showPhotos();
    showFacts();
    $("plan").replaceChildren();
    follow(job, studio);
    $("jobs").scrollIntoView({ block: "nearest" });
  } catch (error) {
    fail(error);
    ready();
  }
}

/** Show a job, and watch it while it goes on. */
function follow(job, studio) {
  const view = jobs.get(job.id) || jobView(job.id, studio);
  jobs.set(job.id, view);
  if (!view.node.isConnected) $("jobs").prepend(view.node);
  view.show(job);
  if (job.state !== "learning" || streams.has(job.id)) return;
  const stream = new EventSource(`/api/jobs/${job.id}/events`);
  streams.set(job.id, stream);
  stream.onmessage = (message) => {
    const event = JSON.parse(message.data);
    view.show(event);
    if (["done", "stopped", "failed", "forgotten"].includes(event.state)) {
      stream.close();
      streams.delete(job.id);
      studio.refresh().catch(fail);
    }
  };
}

function jobView(id, studio) {
  const job = { id, losses: [], previews: [], notes: [] };
  const title = el("h2");
  const badge = el("span", { class: "badge", role: "status" });
  const bar = meter("Learned so far");
  const line = el("div", { class: "facts-line" });
  const chart = el("div");
  const film = el("div", { class: "film", role: "group", "aria-label": "Pictures painted on the way", tabindex: "0" });
  const notes = el("ul", { class: "notes" });
  const buttons = el("div", { class: "row" });
  const node = el("article", { class: "panel job", "data-job": id }, el("div", { class: "title" }, title, badge), bar.node, line, chart, film, notes, buttons);
  const act = (method, path) => () => send(method, path).then((data) => data && follow(data, studio)).catch(fail);

  function show(event) {
    if (event.state === "forgotten") {
      node.remove();
      jobs.delete(id);
      return;
    }
    if (event.losses) job.losses = event.losses;
    if (event.previews) job.previews = event.previews;
    if (event.loss) job.losses = [...job.losses.filter(([step]) => step < event.loss[0]), event.loss];
    if (event.preview) job.previews = [...job.previews.filter((one) => one.step < event.preview.step), event.preview];
    const { losses, previews, loss, preview, ...rest } = event;
    Object.assign(job, rest);
    title.textContent = `<${job.name}>`;
    const words = { waiting: job.position ? `${job.position} before it` : "waiting", learning: job.phase || "learning", done: job.grade || "done", stopped: "stopped", failed: "failed" };
    badge.textContent = words[job.state] || job.state;
    badge.className = `badge ${job.state === "done" ? job.grade : job.state}`;
    const going = ["waiting", "learning"].includes(job.state);
    bar.node.hidden = !going && job.state !== "stopped";
    bar.set(job.total ? job.step / job.total : 0);
    const last = job.losses[job.losses.length - 1];
    line.replaceChildren(...[
      job.total && job.state !== "done" ? el("span", {}, "step ", el("b", {}, `${job.step} of ${job.total}`)) : null,
      last ? el("span", {}, "loss ", el("b", {}, last[1].toFixed(3))) : null,
      job.seconds_left && job.state === "learning" ? el("span", {}, el("b", {}, duration(job.seconds_left)), " left") : null,
      job.resumed_from ? el("span", {}, `went on from step ${job.resumed_from}`) : null,
    ].filter(Boolean));
    chart.replaceChildren(...(job.losses.length > 1 ? [curve(job.losses)] : []));
    if (film.childElementCount !== job.previews.length || preview) {
      film.replaceChildren(...job.previews.map((one) => el("figure", {},
        el("img", { src: `data:image/png;base64,${one.png}`, alt: `Painted after step ${one.step}` }),
        el("figcaption", {}, `step ${one.step}`))));
      film.scrollLeft = film.scrollWidth;
    }
    const remarks = [...(job.error ? [`${job.error}${job.hint ? `. ${job.hint}` : ""}`] : []), ...(job.notes || []).map(readable)];
    notes.replaceChildren(...remarks.map((note) => el("li", {}, note)));
    notes.hidden = !remarks.length;
    node.classList.toggle("failed", job.state === "failed");
    if (event.state || !buttons.childElementCount) buttons.replaceChildren(...actions());
  }

  function actions() {
    if (["waiting", "learning"].includes(job.state)) {
      return [el("button", { type: "button", class: "button quiet", onclick: act("POST", `/api/jobs/${id}/stop`) }, "Stop")];
    }
    const away = el("button", { type: "button", class: "button quiet", onclick: async () => {
      const sure = job.state === "done" || (await confirmed("Throw this away?", "Its photos and what was learned so far are deleted.", "Throw away"));
      if (!sure) return;
      await send("DELETE", `/api/jobs/${id}`).catch(fail);
      show({ state: "forgotten" });
    } }, job.state === "done" ? "Put away" : "Throw away");
    if (job.state === "done") {
      return [
        el("a", { class: "button", href: "#paint", onclick: () => { $("prompt").value = `<${job.name}> at the beach`; } }, icon("paint"), "Paint it"),
        job.card ? el("a", { class: "button quiet", href: `/api/jobs/${id}/card`, target: "_blank", rel: "noopener" }, "Report card with its pictures") : null,
        away].filter(Boolean);
    }
    return [el("button", { type: "button", class: "button", onclick: act("POST", `/api/jobs/${id}/resume`) }, "Go on"), away];
  }
  return { node, show, state: () => job.state };
}

/** The loss of every step, drawn as wide as there is room. */
function curve(points) {
  const [first, last] = [points[0][0], points[points.length - 1][0]];
  const top = Math.max(...points.map(([, loss]) => loss)) || 1;
  const path = points.map(([step, loss]) => `${((100 * (step - first)) / (last - first || 1)).toFixed(2)},${(100 - (92 * loss) / top).toFixed(2)}`).join(" ");
  return el("div", { class: "curve" },
    el("span", {}, `loss ${top.toFixed(2)}`),
    svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": `The loss went from ${points[0][1].toFixed(2)} to ${points[points.length - 1][1].toFixed(2)}` },
      svg("polygon", { class: "area", points: `0,100 ${path} 100,100` }),
      svg("polyline", { class: "loss", points: path })),
    el("span", { class: "end" }, `step ${last}`));
}
