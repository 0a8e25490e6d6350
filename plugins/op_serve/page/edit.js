// Edit: a picture, where it may change, and both sides of the change.
import { dataUrl, lines } from "./api.js";
import { $, droppable, fail, number, offerFast, toast } from "./dom.js";
import { namesHere, offerNames } from "./names.js";
import { pending, shot } from "./shot.js";

let source = null;
let picture = null;
let strokes = [];
let drawing = null;
let running = null;

export function begin(studio) {
  droppable($("editdrop"), $("editfile"), ([file]) => look(file));
  droppable($("canvasbox"), $("editfile"), ([file]) => look(file));
  $("otherpicture").addEventListener("click", () => $("editfile").click());
  $("clearmask").addEventListener("click", () => {
    strokes = [];
    draw();
  });
  $("undomask").addEventListener("click", () => {
    strokes.pop();
    draw();
  });
  $("strength").addEventListener("input", () => {
    $("strengthsaid").textContent = `${$("strength").value} %`;
  });
  $("change").addEventListener("input", ready);
  $("change").addEventListener("change", ready);
  $("editing").addEventListener("submit", (event) => {
    event.preventDefault();
    edit(studio);
  });
  pointer();
}

export function update(studio) {
  offerNames($("change"), $("editnames"), namesHere(studio));
  offerFast($("editfast"), studio.state.backend.fast);
}

function ready() {
  $("doedit").disabled = !(source && $("change").value.trim()) || Boolean(running);
}

/** Edit this picture from now on. */
export async function look(file) {
  try {
    source = await dataUrl(file);
    const image = new Image();
    image.src = source;
    await image.decode();
    picture = image;
  } catch {
    source = picture = null;
    toast("this is no picture that a browser can show");
    return;
  }
  strokes = [];
  const canvas = $("mask");
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
  $("canvasbox").classList.toggle("fine", canvas.width > 256);
  $("canvasbox").hidden = $("masktools").hidden = false;
  $("editdrop").hidden = true;
  draw();
  ready();
}

function pointer() {
  const canvas = $("mask");
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const scale = Math.min(box.width / canvas.width, box.height / canvas.height);
    const left = box.left + (box.width - scale * canvas.width) / 2;
    const top = box.top + (box.height - scale * canvas.height) / 2;
    return [(event.clientX - left) / scale, (event.clientY - top) / scale];
  };
  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    drawing = { width: (Number($("brush").value) / 100) * Math.max(canvas.width, canvas.height), points: [at(event)] };
    strokes.push(drawing);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    drawing.points.push(at(event));
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (drawing = null));
}

function draw() {
  const canvas = $("mask");
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  if (!strokes.length) return;
  const layer = new OffscreenCanvas(canvas.width, canvas.height);
  paintStrokes(layer.getContext("2d"), "#7a5cff");
  pen.globalAlpha = 0.55;
  pen.drawImage(layer, 0, 0);
  pen.globalAlpha = 1;
}

function paintStrokes(pen, colour) {
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineCap = pen.lineJoin = "round";
  for (const stroke of strokes) {
    pen.lineWidth = stroke.width;
    pen.beginPath();
    const [[x, y], ...rest] = stroke.points;
    pen.moveTo(x, y);
    pen.lineTo(x + 0.01, y);
    for (const [nextX, nextY] of rest) pen.lineTo(nextX, nextY);
    pen.stroke();
  }
}

/** What was drawn, white on black. */
async function mask() {
  if (!strokes.length) return undefined;
  const layer = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
  const pen = layer.getContext("2d");
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, layer.width, layer.height);
  paintStrokes(pen, "#fff");
  return dataUrl(await layer.convertToBlob({ type: "image/png" }));
}

function box() {
  const values = ["bx", "by", "bw", "bh"].map((id) => number($(id)));
  return values.every((value) => value !== undefined) ? values : undefined;
}

async function edit(studio) {
  if (running || !source) return;
  running = new AbortController(); // before anything is waited for: a second click is none
  const stop = running;
  const before = source;
  const place = pending(() => stop.abort());
  $("edited").prepend(place.node);
  place.node.scrollIntoView({ block: "nearest" });
  ready();
  const fields = {
    prompt: $("change").value.trim(),
    strength: Number($("strength").value) / 100,
    seed: number($("editseed")),
    tries: number($("edittries")),
    fast: Boolean(studio.state.backend.fast) && $("editfast").checked,
    estimates: 8,
    box: strokes.length ? undefined : box(),
  };
  try {
    const body = { ...fields, source: before, mask: await mask() };
    await lines("/api/paint", body, (event) => {
      if (event.event === "picture") place.node.replaceWith(shot(event, studio, { before }));
      else if (event.event === "estimate") place.estimate(event.png);
      else if (event.event === "note") toast(event.text);
      else place.tell(event);
    }, stop.signal);
  } catch (error) {
    fail(error);
  } finally {
    place.node.remove();
    running = null;
    ready();
    studio.look();
  }
}
