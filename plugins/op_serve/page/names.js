// Names of concepts under a field: a press puts one in, Tab completes what is being typed.
import { el } from "./dom.js";

const BEGUN = /<?([A-Za-z][A-Za-z0-9_-]*)$/;

export function offerNames(input, place, names) {
  place.replaceChildren(
    ...names.map((name) =>
      el("button", { type: "button", class: "chip", onclick: () => put(input, name, place) }, `<${name}>`)),
  );
  if (input.dataset.offered) return;
  input.dataset.offered = "yes";
  input.addEventListener("input", () => mark(input, place));
  input.addEventListener("keydown", (event) => {
    const near = place.querySelector(".near");
    if (event.key === "Tab" && !event.shiftKey && near) {
      event.preventDefault();
      put(input, near.textContent.slice(1, -1), place);
    }
  });
}

function begun(input) {
  const before = input.value.slice(0, input.selectionStart);
  return BEGUN.exec(before);
}

function mark(input, place) {
  const found = begun(input);
  const typed = found && (found[0].startsWith("<") || found[1].length > 1) ? found[1].toLowerCase() : "";
  for (const chip of place.children) {
    const name = chip.textContent.slice(1, -1);
    chip.classList.toggle("near", Boolean(typed) && name.startsWith(typed));
  }
}

function put(input, name, place) {
  const found = begun(input);
  const at = input.selectionStart;
  const starts = found && name.startsWith(found[1].toLowerCase()) ? at - found[0].length : at;
  const before = input.value.slice(0, starts);
  const after = input.value.slice(at);
  const space = before && !/\s$/.test(before) ? " " : "";
  input.value = `${before}${space}<${name}>${after.startsWith(" ") || !after ? "" : " "}${after}`;
  const end = before.length + space.length + name.length + 2;
  input.focus();
  input.setSelectionRange(end, end);
  mark(input, place);
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

export const namesHere = (studio) =>
  studio.state.concepts.filter((one) => one.here).map((one) => one.name);
