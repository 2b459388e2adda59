"use strict";
const cards = [...document.querySelectorAll(".pair")].map((node) => ({
  node,
  tiles: [...node.querySelectorAll("li")],
  text: [...node.querySelectorAll("a")].map((link) => link.title).join("\n").toLowerCase(),
}));
const least = document.getElementById("least");
const filter = document.getElementById("filter");
const noun = document.getElementById("cards").dataset.noun;
let current = -1; // number of the card that j and k go on from

function show() {
  const wanted = filter.value.trim().toLowerCase();
  const score = Number(least.value);
  let shown = 0;
  for (const { node, tiles, text } of cards) {
    let matches = 0;
    for (const tile of tiles) {
      if (tile.dataset.score === undefined) continue;
      tile.hidden = Number(tile.dataset.score) < score - 5e-5; // the slider has four digits
      matches += !tile.hidden;
    }
    node.hidden = !matches || !text.includes(wanted);
    shown += !node.hidden;
  }
  document.getElementById("least-shown").value = score.toFixed(4);
  document.getElementById("count").textContent =
    `${shown.toLocaleString("en")} of ${cards.length.toLocaleString("en")} ${noun}`;
}

function go(step) {
  let next = current + step;
  while (cards[next] && cards[next].node.hidden) next += step;
  if (!cards[next]) return;
  current = next;
  cards[current].node.focus({ preventScroll: true });
  cards[current].node.scrollIntoView({ block: "nearest", behavior: "instant" });
}

function turn(step) {
  if (current < 0) return go(1);
  const links = cards[current].tiles.filter((tile) => !tile.hidden).map((tile) => tile.querySelector("a"));
  const at = links.indexOf(document.activeElement);
  links[Math.min(Math.max(at + step, 0), links.length - 1)].focus();
}

// Pairs that are no duplicates: marked on the page, listed below it as rows of a CSV.
const rejected = document.getElementById("rejected");

function pathOf(tile) {
  return decodeURIComponent(new URL(tile.querySelector("a").href).pathname);
}

function list() {
  const rows = [];
  for (const { tiles } of cards)
    for (const tile of tiles)
      if (tile.classList.contains("rejected"))
        rows.push([pathOf(tile), pathOf(tiles[0]), tile.dataset.sha256 ?? "", tiles[0].dataset.sha256 ?? ""]);
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  rejected.hidden = !rows.length;
  rejected.querySelector("textarea").value = [["path", "of", "sha256", "of_sha256"], ...rows]
    .map((row) => row.map(quoted).join(",") + "\n").join("");
}

function reject(tile) {
  const button = tile?.querySelector("button");
  if (!button) return;
  button.setAttribute("aria-pressed", tile.classList.toggle("rejected"));
  list();
}

for (const { tiles } of cards)
  for (const tile of tiles.slice(1)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "no duplicate";
    button.setAttribute("aria-pressed", false);
    button.addEventListener("click", () => reject(tile));
    tile.append(button);
  }

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    document.activeElement.blur();
    if (current >= 0) cards[current].node.focus();
  } else if (document.activeElement.matches("input, textarea")) {
    return;
  } else if (event.key === "j" || event.key === "ArrowDown") go(1);
  else if (event.key === "k" || event.key === "ArrowUp") go(-1);
  else if (event.key === "ArrowRight") turn(1);
  else if (event.key === "ArrowLeft") turn(-1);
  else if (event.key === "n") reject(document.activeElement.closest("li"));
  else if (event.key === "/") filter.focus();
  else if (event.key === "s") least.focus();
  else if (event.key === "Enter" && current >= 0 && document.activeElement === cards[current].node)
    cards[current].node.querySelector("a").click();
  else return;
  if (event.key !== "Enter" && event.key !== "Escape") event.preventDefault();
});
document.addEventListener("focusin", (event) => {
  const card = event.target.closest(".pair");
  if (card) current = cards.findIndex(({ node }) => node === card);
});
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
least.addEventListener("input", show);
filter.addEventListener("input", show);
show();
