// Cards: who is known, what is true of them, how well they were learned.
import { post, send } from "./api.js";
import { $, confirmed, droppable, el, fail, icon, meter, toast } from "./dom.js";

const opened = new Set();

export function begin(studio) {
  $("import").addEventListener("change", async () => {
    const [file] = $("import").files;
    $("import").value = "";
    if (!file) return;
    try {
      const found = await post("/api/concepts", file);
      toast(`<${found.name}> is here now`);
      await studio.refresh();
    } catch (error) {
      fail(error);
    }
  });
  droppable($("cards"), el("input", { type: "file" }), async ([file]) => {
    try {
      await post("/api/concepts", file);
      await studio.refresh();
    } catch (error) {
      fail(error);
    }
  });
}

export function update(studio) {
  const { concepts, jobs } = studio.state;
  if ($("cards").contains(document.activeElement) && document.activeElement.tagName === "INPUT") return;
  $("cards").replaceChildren(...concepts.map((one) => card(one, studio)));
  if (!concepts.length) $("cards").append(empty());
  $("running").replaceChildren(
    ...jobs.filter((job) => ["waiting", "learning"].includes(job.state)).map(running));
}

function empty() {
  return el("div", { class: "empty" }, icon("teach"),
    el("h2", {}, "Nobody is known yet"),
    el("p", {}, "Teach somebody from five to ten photos. Then use the name everywhere: ask about them, paint them, put them into other pictures."),
    el("a", { class: "button large", href: "#teach" }, "Teach somebody"));
}

function running(job) {
  const bar = meter(`Learning ${job.name}`);
  bar.set(job.total ? job.step / job.total : 0);
  return el("a", { class: "panel", href: "#teach" }, el("h2", {}, `Learning <${job.name}>`), bar.node);
}

function hue(name) {
  let sum = 0;
  for (const letter of name) sum = (sum * 31 + letter.charCodeAt(0)) % 360;
  return sum;
}

export function face(one) {
  const node = el("div", { class: "face" });
  node.style.setProperty("--hue", String(hue(one.name)));
  if (one.thumbnail) {
    const src = `/api/concepts/${one.name}/thumbnail?${one.hash.slice(0, 8)}`;
    node.append(el("img", { class: "backdrop", src, alt: "" }), el("img", { src, alt: `${one.name}, as its pack shows it` }));
  } else node.append(el("b", { "aria-hidden": "true" }, one.name[0]));
  return node;
}

function card(one, studio) {
  if (one.broken) {
    return el("article", { class: "panel" }, el("h2", {}, `<${one.name}>`), el("p", {}, one.broken), el("p", { class: "help" }, one.hint));
  }
  const title = el("div", { class: "title" }, el("h2", {}, `<${one.name}>`),
    el("span", {}, one.kind || ""),
    one.here
      ? el("span", { class: `badge ${one.grade}`, title: "How well it was learned" }, one.grade || "not measured")
      : el("span", { class: "badge" }, `learned on ${one.backends.join(", ")}`));
  const add = el("input", { placeholder: `${one.name}'s toy is …`, maxlength: "300", "aria-label": `A new fact about ${one.name}` });
  const facts = el("ul", { class: "factlist", "aria-label": `Facts about ${one.name}` },
    ...one.facts.map((fact) => el("li", {}, el("span", {}, fact.text),
      el("button", { type: "button", "aria-label": `Forget: ${fact.text}`, onclick: () => forget(one, fact.text, studio) }, icon("close")))));
  const adding = el("form", { class: "row", onsubmit: async (event) => {
    event.preventDefault();
    if (!add.value.trim()) return;
    try {
      await post(`/api/concepts/${one.name}/facts`, { text: add.value });
      add.value = "";
      add.blur();
      await studio.refresh();
    } catch (error) {
      fail(error);
    }
  } }, el("label", { class: "grow" }, el("span", { class: "hidden" }, "A new fact"), add),
  el("button", { class: "button quiet" }, "Add"));
  return el("article", { class: "panel card", "data-name": one.name }, face(one),
    el("div", { class: "body" }, title, facts, adding, report(one),
      el("div", { class: "row" },
        el("a", { class: "button quiet", href: "#paint", onclick: () => fill("prompt", one.name) }, icon("paint"), "Paint"),
        el("a", { class: "button quiet", href: "#talk", onclick: () => fill("question", one.name) }, icon("talk"), "Talk"),
        el("a", { class: "button quiet icon", href: `/api/concepts/${one.name}/pack`, download: `${one.name}.opconcept`, "aria-label": `Save the pack of ${one.name}`, title: "Save the pack" }, icon("save")),
        el("button", { type: "button", class: "button quiet icon", "aria-label": `Delete ${one.name}`, title: "Delete", onclick: () => remove(one, studio) }, icon("bin")))));
}

function report(one) {
  if (!one.figures.length) return null;
  const rows = one.figures.map(([what, words]) => el("tr", {}, el("th", { scope: "row" }, what), el("td", {}, words)));
  return el("details", { class: "more", open: opened.has(one.name), ontoggle: (event) => {
    event.target.open ? opened.add(one.name) : opened.delete(one.name);
  } }, el("summary", {}, "Report card"),
  el("table", { class: "cardtable" }, el("tbody", {}, ...rows)),
  one.advice.length ? el("ul", { class: "advice" }, ...one.advice.map((line) => el("li", {}, line))) : null);
}

function fill(id, name) {
  const input = $(id);
  if (!input.value.includes(`<${name}>`)) input.value = id === "question" ? `is <${name}> here?` : `<${name}> `;
  setTimeout(() => input.focus(), 0);
}

async function forget(one, text, studio) {
  try {
    await send("DELETE", `/api/concepts/${one.name}/facts`, { text });
    await studio.refresh();
  } catch (error) {
    fail(error);
  }
}

async function remove(one, studio) {
  if (!(await confirmed(`Delete <${one.name}>?`, `It is taken out of the library. "op concepts undo ${one.name}" brings it back; "op concepts forget ${one.name}" leaves no copy.`))) return;
  try {
    await send("DELETE", `/api/concepts/${one.name}`);
    toast(`<${one.name}> is gone`);
    await studio.refresh();
  } catch (error) {
    fail(error);
  }
}
