// Buttons and forms ask the API; what goes wrong is said at the foot of the page.
"use strict";

const ROOT = document.body.dataset.root;

function complain(message, hint = "", problems = []) {
  const box = document.getElementById("problems");
  box.replaceChildren();
  const say = (tag, text) => { const e = document.createElement(tag); e.textContent = text; box.append(e); return e; };
  say("p", message).className = "bad";
  for (const problem of problems) say("p", problem);
  if (hint) say("p", hint).className = "faint";
  const close = say("button", "Close");
  close.addEventListener("click", () => box.replaceChildren());
}

// The answer of a request, or null where it failed, which is said.
async function ask(method, address, body) {
  const options = {method, headers: {accept: "application/json"}};
  if (body instanceof Blob) options.body = body;
  else if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    complain("the service does not answer", "is it running? try again in a moment");
    return null;
  }
  if (answer.status === 401) location.assign(`${ROOT}/login`);
  const text = await answer.text();
  let content = {};
  try { content = text ? JSON.parse(text) : {}; } catch (error) { content = {message: text.slice(0, 300)}; }
  if (!answer.ok) {
    complain(content.message || `error ${answer.status}`, content.hint, content.problems);
    return null;
  }
  return content;
}

async function act(element, body) {
  const {method, action, then, confirm: question} = element.dataset;
  if (question) {
    const name = action.split("confirm=")[1];
    if (prompt(question) !== decodeURIComponent(name)) return;
  }
  const button = element.matches("button") ? element : element.querySelector("button");
  button.disabled = true;
  const answer = await ask(method, action, body);
  button.disabled = false;
  if (answer !== null) location.assign(then);
}

for (const button of document.querySelectorAll("button[data-action]")) {
  button.addEventListener("click", () => act(button));
}
for (const form of document.querySelectorAll("form[data-action]")) {
  form.addEventListener("submit", event => {
    event.preventDefault();
    act(form, Object.fromEntries(new FormData(form)));
  });
}

// Figures that the server makes: fetched, and again when a control changes.
async function drawFrom(holder) {
  const answer = await fetch(holder.dataset.figureUrl + (holder.dataset.query || ""));
  if (!answer.ok) {
    holder.textContent = "There is nothing to draw yet.";
    return;
  }
  const figure = await answer.json();
  if (!holder.matches(".js-plotly-plot")) holder.replaceChildren();
  Plotly.react(holder, figure.data, dressed(figure), {responsive: true, displaylogo: false});
}

for (const holder of document.querySelectorAll("[data-figure-url]")) {
  new IntersectionObserver((entries, observer) => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    observer.disconnect();
    drawFrom(holder);
  }, {rootMargin: "400px"}).observe(holder);
}
for (const controls of document.querySelectorAll("[data-controls]")) {
  controls.addEventListener("change", () => {
    const holder = document.getElementById(controls.dataset.controls);
    holder.dataset.query = `?${new URLSearchParams(new FormData(controls))}`;
    drawFrom(holder);
  });
}

// A table that is fetched again every so many seconds, while one looks at it and something in it runs.
for (const table of document.querySelectorAll("table[data-poll]")) {
  setInterval(async () => {
    if (document.hidden || !table.querySelector(".badge.running, .badge.queued")) return;
    const answer = await fetch(location.href, {headers: {accept: "text/html"}});
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const rows = page.querySelector("table[data-poll] tbody");
    if (rows) table.tBodies[0].replaceWith(rows);
  }, 1000 * Number(table.dataset.poll));
}
