// The page of a study while it runs: progress from the stream of events, tables from what a finished trial changes.
"use strict";

const watched = document.getElementById("watch");
const {study: STUDY, events: EVENTS, rendered: RENDERED} = watched.dataset;
let finished = Number(watched.dataset.finished), trials = Number(watched.dataset.trials);
const rows = new Map();

function showProgress() {
  const bar = document.querySelector("#progress progress");
  if (!bar) return;
  bar.max = trials || 1;
  bar.value = finished;
  document.querySelector("#progress .counts").textContent = `${finished.toLocaleString("en")} of ${trials.toLocaleString("en")}`;
}

function showState(state) {
  const badge = document.querySelector("#state .badge");
  badge.className = `badge ${state}`;
  badge.textContent = state;
}

function budgetText(budget) {
  return budget === null ? "none" : budget.text || Object.entries(budget).flat().join(" ");
}

function rowOf(event) {
  const body = document.querySelector("#running tbody");
  if (!body) return null;
  if (!rows.has(event.trial)) {
    const row = body.insertRow();
    for (const kind of ["number", "", "", "number", "", "", "number"]) row.insertCell().className = kind;
    row.cells[0].textContent = event.trial;
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", `progress of trial ${event.trial}`);
    row.cells[5].append(bar);
    rows.set(event.trial, row);
  }
  document.getElementById("running").hidden = false;
  return rows.get(event.trial);
}

function leave(trial) {
  rows.get(trial)?.remove();
  rows.delete(trial);
  if (!rows.size) document.getElementById("running").hidden = true;
}

async function changed(trial) {
  const answer = await fetch(`${ROOT}/studies/${STUDY}/trials/${trial}/section`, {headers: {accept: "text/html"}});
  if (answer.status !== 200) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const section = page.querySelector("section");
  const old = document.getElementById(section.id);
  if (old) old.replaceWith(section);
  else location.reload();
}

const HANDLERS = {
  opened(event) {
    trials = event.finished + event.queued + event.to_propose;
    finished = event.finished;
    showState("running");
    if (!document.querySelector("#progress progress")) location.reload();
    showProgress();
  },
  started(event) {
    const row = rowOf(event);
    if (!row) return;
    [row.cells[1].textContent, row.cells[2].textContent, row.cells[3].textContent] = [event.strategy, budgetText(event.budget), event.seed];
  },
  progressed(event) {
    const row = rowOf(event);
    if (!row) return;
    row.cells[4].textContent = event.phase;
    const bar = row.cells[5].firstChild;
    [bar.max, bar.value] = [event.total || 1, event.done];
    if (event.score !== null) row.cells[6].textContent = event.score.toFixed(4);
  },
  finished(event) {
    leave(event.trial);
    if (event.at <= RENDERED) return;
    finished = Math.min(trials, finished + 1);  // one that ended while the page was made is told again
    showProgress();
    changed(event.trial);
  },
};

if (EVENTS) {
  const stream = new EventSource(EVENTS);
  for (const [name, handle] of Object.entries(HANDLERS)) {
    stream.addEventListener(name, message => {
      const event = JSON.parse(message.data);
      if (name === "opened" && event.at <= RENDERED) return;
      handle(event);
    });
  }
  stream.addEventListener("idle", () => {
    stream.close();
    location.reload();
  });
} else if (watched.dataset.state === "running") {
  setInterval(async () => {
    if (document.hidden) return;
    const answer = await fetch(`${ROOT}/api/v1/studies/${STUDY}`);
    if (!answer.ok) return;
    const now = await answer.json();
    if (now.owner === null) location.reload();
    [finished, trials] = [now.finished, now.trials];
    showProgress();
  }, 5000);
}

// The log, read on while it is open.
for (const details of document.querySelectorAll("details[data-log]")) {
  const text = details.querySelector("pre");
  let next = 0, reading = false;
  async function readOn() {
    if (reading || !details.open || document.hidden) return;
    reading = true;
    const answer = await fetch(`${details.dataset.log}?offset=${next}`);
    const piece = answer.ok ? await answer.json() : {text: "", next};
    if (piece.text) text.append(piece.text);
    const more = piece.next - next > 65532;  // a piece ends before a character that would be cut
    [next, reading] = [piece.next, false];
    if (more) readOn();
  }
  details.addEventListener("toggle", readOn);
  readOn();
  setInterval(readOn, 2000);
}
