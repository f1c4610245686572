// The page of `magi play`: keys to the server, frames to the canvas, and how long it took from one to the other.
// The protocol is in docs/play.md.
"use strict";

const HEADER = 36, RAW = 0, ZIP = 2;
const IDLE = new Set(["stand", "none", "noop", "idle", "wait", "nothing"]);
const KEYS = {
  left: ["ArrowLeft", "KeyA"], right: ["ArrowRight", "KeyD"], up: ["ArrowUp", "KeyW"], down: ["ArrowDown", "KeyS"],
  jump: ["Space", "ArrowUp", "KeyW"], fire: ["Space", "KeyX"],
};
const KEPT = 200; // latencies and times of frames that the figures are of

const $ = (id) => document.getElementById(id);
const held = []; // inputs that are pressed, the newest last
const sent = []; // [sequence number, time of the key] not yet on the screen
const shown = []; // times of the newest frames
const stats = { frame: 0, seq: 0, obeyed: 0, error: null, late: 0, place: null, latencies: [], parts: [], closed: null,
  recording: 0 };
window.magi = stats; // for tests, and for the curious
let socket, welcome, inputs = [], start = 0, action = -1, asked = false, draws = Promise.resolve();
let apart = Infinity; // the server's clock and the page's, and the least time that a frame was on its way

function say(message) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function status(text) {
  $("status").textContent = text;
}

// ---- keys ----

function wordsOf(name) {
  return name.toLowerCase().split(/[^\p{L}\p{N}]+/u).filter((word) => word && !IDLE.has(word));
}

// Inputs are the words of the actions' names; without names, one for each action.
function findInputs(actions) {
  const words = [...new Set(actions.flatMap(wordsOf))];
  let free = 1;
  return words.map((word) => ({ word, keys: KEYS[word] ?? (free < 10 ? [`Digit${free++}`] : []) }));
}

// The action with the most words that are all held; of several the one with the newest.
function chosenAction() {
  let best = -1, most = -1;
  welcome.actions.forEach((name, number) => {
    const words = wordsOf(name);
    if (words.some((word) => !held.includes(word))) return;
    const newest = Math.max(-1, ...words.map((word) => held.indexOf(word)));
    const score = words.length * 1000 + newest;
    if (score > most) [best, most] = [number, score];
  });
  return best;
}

function press(word, down, time) {
  const at = held.indexOf(word);
  if (down === at >= 0) return;
  if (down) held.push(word);
  else held.splice(at, 1);
  const button = inputs.find((input) => input.word === word).button;
  button.setAttribute("aria-pressed", String(down));
  sendKeys(time);
}

function sendKeys(time) {
  const now = chosenAction();
  if (now === action) return;
  action = now;
  stats.seq += 1;
  if (playing()) sent.push([stats.seq, time]);
  say({ type: "keys", action, seq: stats.seq });
}

function releaseAll() {
  for (const word of [...held]) press(word, false, performance.now());
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || !welcome) return;
  if (event.target.closest("input, select")) return;
  if (event.code === "Space" && event.target.closest("button, summary")) return;
  const words = inputs.filter((input) => input.keys.includes(event.code)).map((input) => input.word);
  if (!words.length) return;
  event.preventDefault();
  if (!event.repeat) for (const word of words) press(word, event.type === "keydown", event.timeStamp);
}

function makePad() {
  inputs = findInputs(welcome.actions);
  for (const input of inputs) {
    const button = input.button = document.createElement("button");
    button.type = "button";
    button.textContent = input.word;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      press(input.word, true, event.timeStamp);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
      button.addEventListener(end, (event) => press(input.word, false, event.timeStamp));
    for (const [kind, down] of [["keydown", true], ["keyup", false]])
      button.addEventListener(kind, (event) => {
        if (["Space", "Enter"].includes(event.code) && !event.repeat) press(input.word, down, event.timeStamp);
      });
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    $("pad").append(button);
  }
}

// ---- frames ----

function onFrame(data) {
  const view = new DataView(data);
  const little = true;
  const frame = {
    arrived: performance.now(), packed: Number(view.getBigUint64(12, little)) / 1000,
    number: view.getUint32(4, little), seq: view.getUint32(8, little), took: view.getUint32(20, little) / 1000,
    width: view.getUint16(24, little), height: view.getUint16(26, little), views: view.getUint8(28),
    format: view.getUint8(29), late: view.getUint8(30), error: view.getFloat32(32, little),
  };
  const body = data.slice(HEADER);
  if (frame.format === ZIP) return save(body);
  apart = Math.min(apart, frame.arrived - frame.packed);
  if (frame.format === RAW) return draw(frame, (canvas, number) => {
    const bytes = 4 * frame.width * frame.height;
    const pixels = new Uint8ClampedArray(body, number * bytes, bytes);
    canvas.putImageData(new ImageData(pixels, frame.width, frame.height), 0, 0);
  });
  // A JPEG takes its time to decode; frames stay in their order.
  draws = draws.then(async () => {
    const picture = await createImageBitmap(new Blob([body], { type: "image/jpeg" }));
    draw(frame, (canvas, number) => canvas.drawImage(picture, 0, -number * frame.height));
  });
}

function draw(frame, paint) {
  ["dream", "real"].slice(0, frame.views).forEach((id, number) => paint($(id).getContext("2d"), number));
  requestAnimationFrame(() => {
    const now = performance.now();
    say({ type: "ack", frame: frame.number });
    while (sent.length && sent[0][0] <= frame.seq) measure(frame, now, sent.shift()[1]);
    shown.push(now);
    if (shown.length > KEPT) shown.shift();
    Object.assign(stats, { frame: frame.number, obeyed: frame.seq, error: Number.isNaN(frame.error) ? null : frame.error });
    stats.late = 0.98 * stats.late + 0.02 * frame.late;
    stats.took = frame.took;
    $("late").hidden = !frame.late;
    if (stats.error !== null) {
      $("error").value = stats.error;
      $("error-text").textContent = `${stats.error.toFixed(1)} px`;
    }
  });
}

// From a key to its pixels in milliseconds, and where they went: until its frame began, and so on to the repaint.
function measure(frame, now, pressed) {
  const packed = frame.packed + apart;
  stats.latencies.push(now - pressed);
  stats.parts.push({
    wait: packed - frame.took - pressed, making: frame.took, network: frame.arrived - packed, draw: now - frame.arrived,
  });
  for (const kept of [stats.latencies, stats.parts]) if (kept.length > KEPT) kept.shift();
}

function percentile(values, share) {
  return [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(share * values.length))];
}

function showFigures() {
  const recent = shown.filter((time) => time > performance.now() - 2000);
  stats.fps = recent.length > 1 ? 1000 * (recent.length - 1) / (recent.at(-1) - recent[0]) : 0;
  $("rate").textContent = stats.fps.toFixed(1);
  $("took").textContent = stats.took === undefined ? "–" : `${stats.took.toFixed(0)} ms`;
  $("late-share").textContent = `${(100 * stats.late).toFixed(0)} %`;
  for (const [id, share] of [["p50", 0.5], ["p95", 0.95]]) {
    stats[id] = stats.latencies.length ? percentile(stats.latencies, share) : null;
    $(id).textContent = stats[id] === null ? "–" : `${stats[id].toFixed(0)} ms`;
  }
}

function save(zip) {
  stats.recording = zip.byteLength;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([zip], { type: "application/zip" }));
  link.download = "dream.zip";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- buttons and settings ----

function playing() {
  return !asked && !document.hidden;
}

function sendPause() {
  sent.length = 0; // what was pressed before says nothing about the time after
  shown.length = 0;
  $("pause").setAttribute("aria-pressed", String(asked));
  say({ type: "pause", paused: !playing() });
  showState();
}

function showState() {
  if (!stats.place) status(playing() ? "playing" : "paused");
}

function begin(number) {
  start = number;
  sent.length = 0;
  $("record").setAttribute("aria-pressed", "false");
  [...$("starts").children].forEach((button, n) => button.setAttribute("aria-pressed", String(n === number)));
  const clip = welcome.starts[number];
  $("class").value = clip.label ?? -1;
  $("prompt").value = clip.prompt || $("prompt").value;
  obeyed("");
  say({ type: "start", start, seed: Math.floor(Math.random() * 2 ** 32) });
  if (welcome.text) sendPrompt();
  say({ type: "keys", action, seq: stats.seq });
  $("stage").focus({ preventScroll: true });
}

function sendPrompt() {
  say({ type: "prompt", text: $("prompt").value });
}

function obeyed(text) {
  stats.prompt = text;
  $("obeyed").value = text || "no text";
}

function makeStarts() {
  welcome.starts.forEach(({ name }, number) => {
    const [button, picture, label] = ["button", "img", "span"].map((tag) => document.createElement(tag));
    button.type = "button";
    picture.src = `start/${number}.png`;
    picture.alt = "";
    label.textContent = name;
    button.append(picture, label);
    button.addEventListener("click", () => begin(number));
    $("starts").append(button);
  });
}

function addOption(select, text, value) {
  const option = document.createElement("option");
  [option.textContent, option.value] = [text, value];
  select.append(option);
}

function makeSettings() {
  addOption($("class"), "none", -1);
  welcome.classes.forEach((name, number) => addOption($("class"), name, number));
  $("class-label").hidden = !welcome.classes.length;
  $("class").addEventListener("change", () => say({ type: "label", label: Number($("class").value) }));
  $("guidance-label").hidden = !welcome.classes.length && !welcome.actions.length && !welcome.text;
  $("prompt-form").hidden = !welcome.text;
  for (const fps of [...new Set([5, 10, 15, 20, 30, 60, welcome.fps])].sort((a, b) => a - b))
    if (fps) addOption($("fps"), String(fps), fps);
  for (const speed of welcome.speeds) addOption($("speed"), speed, speed);
  addOption($("fps"), "as many as possible", 0);
  for (const name of ["temperature", "guidance", "speed", "fps"]) {
    const control = $(name), output = document.querySelector(`output[for=${name}]`);
    control.value = welcome[name];
    if (output) {
      output.textContent = control.value;
      control.addEventListener("input", () => (output.textContent = control.value));
    }
    const read = () => (name === "speed" ? control.value : Number(control.value));
    control.addEventListener("change", () => say({ type: "settings", [name]: read() }));
  }
}

function onWelcome(message) {
  welcome = stats.welcome = message;
  for (const id of ["dream", "real"]) [$(id).width, $(id).height] = [message.width, message.height];
  $("real-figure").hidden = $("drift").hidden = !message.real;
  makePad();
  makeStarts();
  makeSettings();
  action = chosenAction();
  begin(0);
  if (document.hidden) sendPause();
}

function onText(message) {
  if (message.type === "welcome") onWelcome(message);
  else if (message.type === "place") {
    stats.place = message.place;
    status(message.place ? `place ${message.place} in the queue: all seats are taken` : "playing");
  } else if (message.type === "prompt") {
    obeyed(message.text); // of the next frame on
    showState();
  } else status(message.text); // notice, error
}

function connect() {
  const address = new URL("play", location.href);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  address.search = "";
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? onText(JSON.parse(data)) : onFrame(data));
  socket.onclose = ({ code, reason }) => {
    stats.closed = code;
    status(`the connection has ended${reason ? `: ${reason}` : ""}; reload the page to play on`);
  };
}

for (const kind of ["keydown", "keyup"]) addEventListener(kind, onKey);
addEventListener("blur", releaseAll);
document.addEventListener("visibilitychange", () => {
  releaseAll();
  sendPause();
});
$("pause").addEventListener("click", () => {
  asked = !asked;
  sendPause();
});
$("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sendPrompt();
});
$("again").addEventListener("click", () => begin(start));
$("record").addEventListener("click", () => {
  const on = $("record").getAttribute("aria-pressed") !== "true";
  $("record").setAttribute("aria-pressed", String(on));
  say({ type: "record", on });
});
setInterval(showFigures, 500);
connect();
