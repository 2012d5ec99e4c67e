// The form that launches a study: the server makes a study of it, the API plans or launches that.
"use strict";

const form = document.getElementById("launch");

async function study() {
  const fields = {};
  for (const input of form.querySelectorAll("input[name]")) fields[input.name] = input.value;
  return ask("POST", `${ROOT}/launch/study`, {fields, rest: document.getElementById("rest").value});
}

async function send(path) {
  const content = await study();
  return content === null ? null : ask("POST", `${ROOT}/api/v1/${path}`, content);
}

async function busy(button, work) {
  button.disabled = true;
  await work();
  button.disabled = false;
}

function duration(seconds) {
  return seconds < 120 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60).toLocaleString("en")} min`;
}

async function plan() {
  const planned = await send("plans");
  if (planned === null) return;
  const section = document.getElementById("planned");
  const body = section.querySelector("tbody");
  body.replaceChildren();
  for (const {budget, fitting, most} of planned.budgets) {
    const row = body.insertRow();
    row.insertCell().textContent = budget.text || Object.entries(budget).flat().join(" ");
    for (const count of [fitting, most]) {
      const cell = row.insertCell();
      cell.className = "number";
      cell.textContent = count.toLocaleString("en");
    }
  }
  const proposed = planned.proposed ? ` and ${planned.proposed} that the outer loop proposes` : "";
  const time = planned.seconds === null ? "Nothing like it has run here, so that nobody knows how long it takes."
    : `About ${duration(planned.seconds)} one after the other, as similar trials took here.`;
  section.querySelector("p").textContent = `${planned.trials} trials${proposed}, ${planned.candidates.toLocaleString("en")} candidates. ${time}`;
  section.hidden = false;
  section.scrollIntoView({block: "nearest"});
}

async function launch() {
  const launched = await send("launches");
  if (launched !== null) location.assign(`${ROOT}/studies/${launched.study}`);
}

form.addEventListener("submit", event => {
  event.preventDefault();
  const button = event.submitter || document.getElementById("plan");
  busy(button, button.id === "go" ? launch : plan);
});

document.getElementById("upload").addEventListener("change", async event => {
  const [file] = event.target.files;
  if (!file) return;
  const said = document.getElementById("uploaded");
  said.textContent = `sending ${file.name} …`;
  const sent = await ask("PUT", `${ROOT}/api/v1/uploads/${encodeURIComponent(file.name)}`, file);
  said.textContent = sent === null ? "" : `${sent.name}: ${sent.rows.toLocaleString("en")} rows, columns ${sent.columns.join(", ")}`;
});
