// One finished picture and what can be done with it.
import { blobOf, send } from "./api.js";
import { $, el, fail, icon, meter, toast } from "./dom.js";
import * as edit from "./edit.js";
import * as talk from "./talk.js";

/** A place on the wall for a picture that is being painted. */
export function pending(onStop) {
  const bar = meter("Painted so far");
  const words = el("span", {}, "waiting");
  const node = el("figure", { class: "shot" }, el("div", { class: "pending" }, words, bar.node,
    onStop ? el("button", { type: "button", class: "button quiet", onclick: onStop }, "Stop") : null));
  const soFar = el("div", { class: "so-far" }, el("img", { alt: "The picture so far" }));
  soFar.firstChild.addEventListener("load", (event) => node.classList.toggle("fine", event.target.naturalWidth > 256));
  return {
    node,
    tell(event) {
      if (event.event === "waiting") words.textContent = event.position ? `${event.position} before it` : "working";
      if (event.event === "progress") {
        words.textContent = event.phase;
        if (event.total) bar.set(event.step / event.total);
      }
    },
    estimate(png) {
      if (!soFar.parentNode) node.prepend(soFar);
      node.classList.add("seen");
      soFar.firstChild.src = `data:image/png;base64,${png}`;
    },
  };
}

/** The picture, or, with its source, both behind a slider. */
export function shot(made, studio, { before = null, again = null } = {}) {
  const blob = blobOf(made.png);
  const url = URL.createObjectURL(blob);
  const [width] = made.about.size || [0];
  const prompt = made.trace.rewritten;
  const image = el("img", { src: url, alt: `Painted: ${prompt}` });
  const names = made.about.concepts || [];
  const figure = el("figure", { class: `shot${width > 256 ? " fine" : ""}` },
    before ? compare(before, url, prompt, width > 256) : image,
    el("div", { class: "body" },
      el("figcaption", { class: "words" }, prompt),
      el("div", { class: "facts-line" }, el("span", {}, "seed ", el("b", {}, String(made.seed))),
        ...Object.entries(made.about.recognised || {}).map(([name, share]) => el("span", {}, `<${name}> recognised `, el("b", {}, `${Math.round(100 * share)} %`)))),
      el("div", { class: "row" },
        el("a", { class: "button quiet", href: url, download: `${fileName(prompt)}-${made.seed}.png` }, icon("save"), "Save"),
        el("button", { type: "button", class: "button quiet", onclick: () => to("edit", () => edit.look(blob)) }, icon("edit"), "Edit"),
        el("button", { type: "button", class: "button quiet", onclick: () => to("talk", () => talk.look(blob)) }, icon("talk"), "Ask"),
        again ? el("button", { type: "button", class: "button quiet icon", "aria-label": "Make it again with these settings", title: "Make it again", onclick: again }, icon("again")) : null,
        names.length === 1 ? el("button", { type: "button", class: "button quiet icon", "aria-label": `Keep as the face of ${names[0]}`, title: `Keep as the face of ${names[0]}`, onclick: () => keep(names[0], blob, studio) }, icon("face")) : null)));
  return figure;
}

const fileName = (prompt) => prompt.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40) || "picture";

function to(view, then) {
  then();
  location.hash = view;
}

async function keep(name, blob, studio) {
  try {
    await send("PUT", `/api/concepts/${name}/thumbnail`, blob);
    toast(`<${name}> has a face now`, "It is kept in the pack, and goes along when the pack is shared.");
    await studio.refresh();
  } catch (error) {
    fail(error);
  }
}

function compare(before, after, words, fine) {
  const slider = el("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": "Before and after" });
  const node = el("div", { class: `compare${fine ? " fine" : ""}` },
    el("img", { src: before, alt: "Before" }),
    el("img", { class: "after", src: after, alt: `After: ${words}` }),
    el("span", { class: "b" }, "before"), el("span", { class: "a" }, "after"), slider);
  slider.addEventListener("input", () => node.style.setProperty("--at", `${slider.value}%`));
  return node;
}
