// Small pieces of page. Text is always set as text: names and facts may be a stranger's.

export const $ = (id) => document.getElementById(id);

/** An element: el("p", {class: "help", onclick: f}, "text", other). */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function svg(tag, props = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Tell a person something at the foot of the page. */
export function toast(message, hint = "") {
  const node = el("div", { class: "toast" }, el("span", {}, message), hint ? el("small", {}, hint) : null);
  $("toasts").append(node);
  setTimeout(() => node.remove(), 5000 + 40 * (message.length + hint.length));
}

export function fail(error) {
  if (error.name === "AbortError") return;
  toast(error.message, error.hint || "");
}

/** Ask before destroying something. */
export function confirmed(title, text, yes = "Delete") {
  const dialog = $("dialog");
  $("dialogtitle").textContent = title;
  $("dialogtext").textContent = text;
  $("dialogyes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** A place where files are dropped or chosen. */
export function droppable(place, input, take) {
  const files = (list) => [...list].filter((file) => file.size > 0);
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    const found = files(event.dataTransfer.files);
    if (found.length) take(found);
  });
  input.addEventListener("change", () => {
    const found = files(input.files);
    input.value = "";
    if (found.length) take(found);
  });
}

/** Show a picture in a drop place, or its invitation again. */
export function showIn(place, source) {
  place.querySelector("img")?.remove();
  place.classList.toggle("full", Boolean(source));
  if (source) place.append(el("img", { src: source, alt: "The chosen picture", onload: (event) => event.target.classList.toggle("small", event.target.naturalWidth <= 256) }));
}

export const number = (input) => (input.value.trim() === "" ? undefined : Number(input.value));

/** A box to tick where the backend has a faster way, with how it is faster. */
export function offerFast(box, how) {
  const label = box.closest("label");
  label.hidden = !how;
  label.querySelector("span").textContent = how;
}

export function meter(label) {
  const bar = el("i");
  const node = el("div", { class: "meter", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, bar);
  return {
    node,
    set(share) {
      const percent = Math.round(100 * Math.min(1, Math.max(0, share)));
      bar.style.width = `${percent}%`;
      node.setAttribute("aria-valuenow", String(percent));
    },
  };
}

export function duration(seconds) {
  if (seconds < 1) return "a moment";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
