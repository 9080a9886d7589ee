// The page of a reviewer: no framework, no build step. Text from outside goes into the page as text alone.
"use strict";

const $ = (id) => document.getElementById(id);
const token = document.querySelector('meta[name="csrf"]').content;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

class Refused extends Error {
  constructor(status, reason) { super(reason); this.status = status; }
}

// One call; waits where the server or a dependency is away. The same call again is the same act.
async function call(name, body, { tries = 60, keepalive = false } = {}) {
  for (let n = 1; ; n += 1) {
    let answer;
    try {
      answer = await fetch(`/api/${name}`, {
        method: "POST", keepalive, redirect: "error", body: JSON.stringify(body),
        headers: { "content-type": "application/json", "x-csrf-token": token },
      });
    } catch { answer = null; }
    if (answer && answer.ok) return answer.json();
    const away = !answer || [502, 503, 504].includes(answer.status);
    if (!away || n >= tries) {
      const said = answer ? await answer.json().catch(() => ({})) : {};
      if (answer && answer.status === 401) location.assign("/login");
      throw new Refused(answer ? answer.status : 0, said.error || "the server does not answer");
    }
    tell("The server is away for a moment; trying again. Nothing is lost.");
    await sleep(Math.min(3000, 250 * n));
  }
}

function tell(text, kind = "") {
  const place = $("notice") || $("said");
  if (!place) return;
  place.textContent = text;
  place.className = kind ? `notice ${kind}` : "notice";
}

function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

// ---- history: appeals

for (const form of document.querySelectorAll("form.appeal")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await call("appeal", { verdict_id: form.dataset.verdict, note: form.note.value });
      form.replaceChildren(make("small", "appealed"));
      tell("A lead will decide it again.");
    } catch (error) { tell(error.message, "problem"); }
  });
}

// ---- review

const root = $("review");
if (root) start();

function start() {
  const state = { tasks: [], group: [], pictures: new Map(), since: 0, revealed: false, view: "view", zoom: 3, busy: false, log: [] };
  const lockMs = Number(root.dataset.lockMs);
  const required = root.dataset.required.split(" ").filter(Boolean);
  let lastActive = performance.now();

  const hide = $("hide");
  hide.value = localStorage.getItem("hide") || root.dataset.hide;
  hide.addEventListener("change", () => { localStorage.setItem("hide", hide.value); state.revealed = false; paint(); });

  const current = () => state.tasks[0];
  const isShown = (task) => Boolean(current()) && current().id === task.id;  // what is claimed again is another object

  // Comes again where too many are decoded at this moment; else the server says why there is none.
  async function fetched(image, key) {
    for (let n = 1; ; n += 1) {
      image.src = n === 1 ? key : `${key}?again=${n}`;
      try { await image.decode(); return; } catch { /* why, is asked below */ }
      const answer = await fetch(key).catch(() => null);
      const said = answer && !answer.ok ? await answer.json().catch(() => ({})) : {};
      const busy = answer && (answer.ok || answer.status === 503);
      if (!busy || n >= 10) throw new Error(said.error || "the image does not come");
      await sleep(1000);
    }
  }

  // A picture is fetched and decoded ahead, and put on the page as it is.
  function picture(task, name) {
    const key = `${task.url}/${name}`;
    if (!state.pictures.has(key)) {
      const image = new Image();
      image.alt = name === "view.jpg" ? "The image to decide" : name === "crop.png" ? "What the model looked at" : "Map: red speaks for fake, blue for real";
      const entry = { image, problem: "" };
      entry.ready = fetched(image, key).catch((error) => { entry.problem = error.message; });
      state.pictures.set(key, entry);
    }
    return state.pictures.get(key);
  }

  function forget() {
    const kept = new Set([...state.tasks, ...state.group].map((task) => task.url));
    for (const key of state.pictures.keys()) {
      if (!kept.has(key.slice(0, key.lastIndexOf("/")))) state.pictures.delete(key);
    }
  }

  async function load() {
    const wanted = $("queue").value || null;
    const answer = await call("claim", { queue: wanted });
    const before = current() && current().id, alike = current() && current().siblings;
    state.tasks = answer.tasks;
    forget();
    for (const task of state.tasks) { picture(task, "view.jpg"); picture(task, "crop.png"); }
    if (!before || !current() || current().id !== before) show();
    else if (!state.group.length && current().siblings !== alike) { describe(current()); paint(); }
  }

  function show() {
    const task = current();
    state.revealed = false;
    state.view = "view";
    state.group = [];
    for (const one of document.querySelectorAll('input[name="reason"]')) one.checked = false;
    $("note").value = "";
    describe(task);
    paint();
    if (!task) { tell("Nothing waits. New images appear by themselves."); return; }
    tell("");
    state.since = performance.now();
    const entry = picture(task, "view.jpg");
    entry.ready.then(() => {
      if (!isShown(task)) return;
      if (entry.problem) tell(`There is no image to show: ${entry.problem}. Decide by the rest, or skip it.`, "problem");
      state.since = performance.now();
      requestAnimationFrame(() => requestAnimationFrame(() => { root.dataset.painted = task.id; root.dataset.paintedAt = String(performance.now()); }));
    });
  }

  function paint() {
    const task = current();
    const stage = $("picture");
    for (const button of root.querySelectorAll(".decide .buttons button, .tools button:not(#help)")) {
      if (button.id !== "undo") button.disabled = !task;
    }
    $("move").disabled = !task || task.queues.length === 0;
    $("group").disabled = !task || (task.siblings === 0 && !state.group.length);
    $("group").setAttribute("aria-pressed", String(state.group.length > 0));
    drawGroup();
    if (!task) { stage.replaceChildren(make("p", "", "empty")); return; }
    const name = { view: "view.jpg", crop: "crop.png", map: "map.png" }[state.view];
    const entry = picture(task, name);
    stage.className = `picture ${state.view} ${state.revealed ? "" : `hidden-${hide.value}`}`;
    entry.image.className = `zoom-${state.zoom}`;
    if (stage.firstChild !== entry.image || stage.childNodes.length > 1) stage.replaceChildren(entry.image);
    if (state.view !== "view") entry.ready.then(() => { if (entry.problem) tell(entry.problem, "problem"); });
    $("reveal").setAttribute("aria-pressed", String(state.revealed));
    $("crop").setAttribute("aria-pressed", String(state.view === "crop"));
    $("map").setAttribute("aria-pressed", String(state.view === "map"));
  }

  // What looks alike, beside the image, hidden as it is; the buttons say how many images they decide.
  function drawGroup() {
    const place = $("alike");
    place.hidden = state.group.length === 0;
    place.className = `alike ${state.revealed ? "" : `hidden-${hide.value === "small" ? "blur" : hide.value}`}`;
    place.replaceChildren(...state.group.map((task) => {
      const line = make("li");
      const entry = picture(task, "view.jpg");
      entry.image.alt = `Near duplicate ${task.image_id}`;
      line.append(entry.image);
      line.title = `${task.image_id}: ${task.scores.map((one) => `${one.name.replace(/^scores\./, "")} ${one.value.toFixed(2)}`).join(", ")}`;
      entry.ready.then(() => { if (entry.problem) line.replaceChildren(make("small", "no image to show")); });
      return line;
    }));
    for (const times of root.querySelectorAll(".times")) times.textContent = state.group.length ? `× ${state.group.length + 1}` : "";
  }

  const together = () => once(async () => {
    const task = current();
    if (!task) return;
    if (state.group.length) { await leaveGroup(); paint(); tell("Your decision is for this image alone."); return; }
    if (!task.siblings) { tell("Nothing that waits looks like it."); return; }
    const answer = await call("group", { task: task.id, token: task.token });
    if (!isShown(task)) return;
    state.group = answer.tasks;
    const own = new Set(answer.tasks.map((one) => one.id));
    state.tasks = [task, ...state.tasks.slice(1).filter((one) => !own.has(one.id))];
    paint();
    tell(state.group.length ? `Your decision is for these ${state.group.length + 1} images. g once more: for this one alone.` : "The others have gone to somebody else.");
  });

  async function leaveGroup() {
    const left = state.group;
    state.group = [];
    for (const task of left) await call("give-back", { task: task.id, token: task.token, how: "release", queue: null }).catch(() => {});
  }

  function describe(task) {
    for (const id of ["image-id", "flags", "scores", "reasons", "evidence", "neighbours", "facts"]) $(id).replaceChildren();
    if (!task) return;
    $("image-id").textContent = task.image_id;
    const flags = [[`worker: ${task.decision}`, task.decision], [`queue: ${task.queue}`, "queue"]];
    if (task.opinion > 1) flags.push(["another opinion", "second"]);
    if (task.siblings) flags.push([`${task.siblings} alike wait: g`, "second"]);
    if (task.appeal !== null) flags.push([`appeal: ${task.appeal}`, "appeal"]);
    for (const label of task.labels) flags.push([label, "label"]);
    for (const [text, kind] of flags) $("flags").append(make("span", text, `badge ${kind}`), " ");
    for (const score of task.scores) {
      const line = make("li");
      line.append(make("span", score.name.replace(/^scores\./, "")), make("strong", score.value.toFixed(4)));
      const bar = make("meter");
      bar.min = 0; bar.max = 1; bar.value = score.value; bar.setAttribute("aria-label", score.name);
      line.append(bar, make("small", score.turns_at === null ? "decides nothing by itself" : `${score.into} from ${score.turns_at}`));
      $("scores").append(line);
    }
    for (const reason of task.reasons) $("reasons").append(make("li", reason));
    for (const text of [`policy ${task.policy}`, `model ${task.model}`, task.policy_note].filter(Boolean)) $("reasons").append(make("li", text, "small"));
    list($("evidence"), task.evidence.length ? task.evidence : [["", "the file says nothing of its origin"]]);
    $("known").hidden = task.neighbours.length === 0;
    list($("neighbours"), task.neighbours);
    list($("facts"), task.image);
  }

  function list(place, lines) {
    for (const [name, value] of lines) place.append(make("dt", name), make("dd", value));
  }

  async function once(work) {
    if (state.busy) return;
    state.busy = true;
    try { await work(); } catch (error) {
      if (!(error instanceof Refused)) throw error;
      tell(error.message, "problem");
      if (error.status === 409) await load().catch(() => {});
    } finally { state.busy = false; }
  }

  function advance() {
    state.tasks.shift();
    show();
    load().catch((error) => tell(error.message, "problem"));
  }

  const reason = () => { const found = document.querySelector('input[name="reason"]:checked'); return found ? found.value : null; };

  const decide = (decision) => once(async () => {
    const task = current();
    if (!task) return;
    if (required.includes(decision) && !reason()) {
      tell(`${decision} needs a reason: choose one with 1 to 9, then ${decision[0]} again.`, "problem");
      return;
    }
    root.dataset.decidedAt = String(performance.now());
    const answer = await call("decide", {
      task: task.id, token: task.token, decision, reason: reason(), note: $("note").value,
      seconds: Math.max(0, (performance.now() - state.since) / 1000),
      also: state.group.map((one) => ({ task: one.id, token: one.token })),
    });
    remember([answer.review_id, ...answer.also], decision, task, answer.undo_ms);
    advance();
    if (answer.left.length) tell(`${answer.left.length} of the group had gone to somebody else.`, "problem");
    if (answer.break) tell("Time for a break: you have looked at many images without one. Five minutes off the screen help.", "pause");
  });

  function remember(ids, decision, task, undoMs) {
    state.log.unshift({ ids, decision, image: task.image_id, until: performance.now() + undoMs, state: "waiting", note: "" });
    state.log.length = Math.min(state.log.length, 6);
    drawLog();
  }

  function drawLog() {
    const first = state.log[0];
    $("undo").disabled = !(first && first.state === "waiting" && performance.now() < first.until);
    const place = $("log");
    place.replaceChildren(...state.log.map((one) => {
      const line = make("li", undefined, one.state);
      line.append(make("span", one.decision, `badge ${one.decision}`), " ", make("bdi", one.image, "id"), " ");
      line.append(make("span", { waiting: "on its way", done: "done", undone: "undone", lost: "not taken; it is asked again" }[one.state], "state"));
      if (one.ids.length > 1) line.append(make("span", ` and ${one.ids.length - 1} alike`, "state"));
      if (one.note) line.append(" ", make("strong", one.note));
      return line;
    }));
  }

  const undo = () => once(async () => {
    const first = state.log[0];
    if (!first || first.state !== "waiting") return;
    const answer = await call("undo", { review_id: first.ids[0], also: first.ids.slice(1) });
    first.state = "undone";
    drawLog();
    if (answer.task) {
      state.tasks = [answer.task, ...state.tasks.filter((task) => task.id !== answer.task.id)];
      picture(answer.task, "view.jpg"); picture(answer.task, "crop.png");
      show();
      state.group = answer.also;
      paint();
    }
  });

  const giveBack = (how, queue = null) => once(async () => {
    const task = current();
    if (!task) return;
    await leaveGroup();
    await call("give-back", { task: task.id, token: task.token, how, queue });
    advance();
  });

  function move() {
    const task = current();
    if (!task || !task.queues.length) return;
    $("targets").replaceChildren(...task.queues.map((name) => {
      const button = make("button", name);
      button.value = name;
      return button;
    }));
    $("moving").showModal();
  }
  $("moving").addEventListener("close", () => { if ($("moving").returnValue) giveBack("move", $("moving").returnValue); $("moving").returnValue = ""; });

  function turn(view) { state.view = state.view === view ? "view" : view; state.revealed = true; paint(); }
  function reveal() { state.revealed = !state.revealed; paint(); }
  function zoom(by) { state.zoom = Math.min(6, Math.max(1, state.zoom + by)); paint(); }
  function choose(index) {
    const one = document.querySelectorAll('input[name="reason"]')[index];
    if (one) one.checked = !one.checked;
  }

  const actions = {
    r: () => decide("real"), f: () => decide("fake"), u: () => decide("unsure"), s: () => giveBack("skip"), m: move, z: undo, g: together,
    n: () => $("note").focus(), c: () => turn("crop"), e: () => turn("map"), " ": reveal, "?": () => $("keys").showModal(),
    q: () => $("queue").focus(), "+": () => zoom(1), "-": () => zoom(-1),
    b: () => { hide.selectedIndex = (hide.selectedIndex + 1) % hide.options.length; hide.dispatchEvent(new Event("change")); },
  };
  for (const [id, act] of Object.entries({
    real: actions.r, fake: actions.f, unsure: actions.u, skip: actions.s, move, undo, group: together, crop: actions.c, map: actions.e, reveal, help: actions["?"],
  })) $(id).addEventListener("click", act);

  document.addEventListener("keydown", (event) => {
    lastActive = performance.now();
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
    const typing = event.target.matches("select, input:not([type=radio])");
    if (typing) {
      if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "note")) { event.target.blur(); event.preventDefault(); }
      return;
    }
    if (event.key === " " && event.target.matches("button, a, input")) return;
    const act = /^[1-9]$/.test(event.key) ? () => choose(Number(event.key) - 1) : actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) { event.preventDefault(); act(); }
  });
  for (const kind of ["pointermove", "pointerdown", "wheel"]) document.addEventListener(kind, () => { lastActive = performance.now(); }, { passive: true });

  $("queue").addEventListener("change", () => once(async () => {
    await leaveGroup();
    for (const task of state.tasks) await call("give-back", { task: task.id, token: task.token, how: "release", queue: null }).catch(() => {});
    state.tasks = [];
    await load();
    $("queue").blur();
  }));

  // What is looked at is kept; what nobody looks at goes to others.
  setInterval(async () => {
    const looking = document.visibilityState === "visible" && performance.now() - lastActive < 300_000;
    if (!looking || !state.tasks.length || state.busy) return;
    try {
      const answer = await call("renew", { held: [...state.tasks, ...state.group].map((task) => ({ task: task.id, token: task.token })) }, { tries: 1 });
      if (current() && !answer.held.includes(current().id)) { state.tasks = []; await load(); tell("The image before went to somebody else: nothing was said of it for too long."); }
    } catch { /* the next time */ }
  }, lockMs / 3);

  setInterval(async () => {
    if (!state.tasks.length && !state.busy && document.visibilityState === "visible") await load().catch(() => {});
  }, 2000);

  setInterval(async () => {
    const waiting = state.log.filter((one) => one.state === "waiting" && performance.now() >= one.until);
    if (!waiting.length) { drawLog(); return; }
    const answer = await call("said", { review_ids: waiting.flatMap((one) => one.ids) }, { tries: 1 }).catch(() => null);
    if (!answer) return;
    for (const one of waiting) {
      const found = answer.said[one.ids[0]];
      const states = one.ids.map((id) => answer.said[id].state);
      if (states.every((state) => state === "done")) one.state = "done";
      if (states.includes("unknown")) one.state = "lost";
      if (found.truth) one.note = found.truth === one.decision ? `a test image: right, it is ${found.truth}` : `a test image: it is ${found.truth}`;
    }
    drawLog();
  }, 700);

  window.addEventListener("pagehide", () => {
    for (const task of [...state.tasks, ...state.group]) call("give-back", { task: task.id, token: task.token, how: "release", queue: null }, { tries: 1, keepalive: true }).catch(() => {});
  });

  load().catch((error) => tell(error.message, "problem"));
}
