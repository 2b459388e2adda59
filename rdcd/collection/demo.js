"use strict";
const at = (id) => document.getElementById(id);
const maxBytes = Number(document.body.dataset.maxBytes);
let asked = 0; // number of the newest question: an older one's answer is not shown

function say(message, bad) {
  at("status").textContent = message;
  at("status").classList.toggle("bad", Boolean(bad));
}

function element(tag, kind, content) {
  const node = document.createElement(tag);
  node.className = kind;
  node.textContent = content;
  return node;
}

function tile(match, calibrated) {
  const node = document.createElement("li");
  if (match.thumbnail) {
    const picture = document.createElement("img");
    picture.src = match.thumbnail;
    picture.alt = "";
    node.append(picture);
  } else node.append(element("span", "missing", match.missing));
  node.append(element("span", "score", match.score.toFixed(4)));
  node.append(element("span", "kind", match.kind));
  if (match.confidence !== null)
    node.append(element("span", "sure", `expected precision ${(100 * match.confidence).toFixed(1)} %`));
  else if (calibrated) node.append(element("span", "sure unknown", "lower than what was calibrated"));
  node.append(element("span", "file", match.name), element("span", "path", match.path));
  return node;
}

function show(answer) {
  const found = answer.matches.filter((match) => match.match);
  const rest = answer.matches.filter((match) => !match.match);
  at("heading").textContent = found.length === 0 ? "No copy found" : found.length === 1 ? "1 match" :
    `${found.length} matches`;
  const norm = answer.score_norm === null ? "not normalized" : `normalized, ${answer.score_norm}`;
  at("how").textContent = `Of ${answer.pictures.toLocaleString("en")} pictures. Threshold ` +
    `${answer.threshold.toFixed(4)}, ${answer.threshold_from}. Scores are ${norm}.` +
    (answer.calibrated ? "" : " What a score is worth is not calibrated: run `rdcd calibrate`.");
  at("matches").replaceChildren(...found.map((match) => tile(match, answer.calibrated)));
  at("rest").replaceChildren(...rest.map((match) => tile(match, answer.calibrated)));
  at("others").hidden = rest.length === 0;
  at("others").open = found.length === 0;
  at("answer").hidden = false;
}

function preview(file) {
  URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  at("name").textContent = file.name;
  at("asked").hidden = false;
}

async function ask(file) {
  const number = ++asked;
  at("answer").hidden = true;
  preview(file);
  if (file.size > maxBytes)
    return say(`The file is larger than ${maxBytes / 1e6} MB, the most that is taken; max_megabytes= allows more.`,
      true);
  say("Looking …");
  let answer, problem;
  try {
    const response = await fetch("/find", { method: "POST", body: file,
      headers: { "Content-Type": "application/octet-stream" } });
    answer = await response.json();
    problem = response.ok ? null : answer.error;
  } catch {
    problem = "there was no answer: is `rdcd demo` still running?";
  }
  if (number !== asked) return;
  if (problem !== null) return say(problem.charAt(0).toUpperCase() + problem.slice(1), true);
  say("");
  show(answer);
}

function take(files) {
  if (files.length) ask(files[0]);
  else say("That was no picture file.", true);
}

at("file").addEventListener("change", () => {
  if (at("file").files.length) ask(at("file").files[0]);
  at("file").value = ""; // the same file may be chosen again
});
for (const kind of ["dragenter", "dragover"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) at("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  event.preventDefault();
  take(event.clipboardData.files);
});
at("preview").addEventListener("error", () => { at("asked").hidden = true; });
