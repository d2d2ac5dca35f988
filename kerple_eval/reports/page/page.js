"use strict";
// Tables that sort by their headings and filter by words. Without this script they are plain tables.
(() => {
  const numeric = /^[-+\u2212]?[\d,]*\.?\d+(e[-+]?\d+)?/i;

  function key(row, column) {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    if (text === "" || cell.hasAttribute("data-missing")) return { missing: true };
    if (cell.hasAttribute("data-value")) return { text, number: Number(cell.getAttribute("data-value")) };
    const found = numeric.exec(text);
    return { text, number: found ? Number(found[0].replace(/,/g, "").replace("\u2212", "-")) : NaN };
  }

  // Numbers before words; what is missing stays last, whichever way.
  function compare(a, b, sign) {
    if (a.missing || b.missing) return Number(Boolean(a.missing)) - Number(Boolean(b.missing));
    const counts = Number(Number.isNaN(a.number)) - Number(Number.isNaN(b.number));
    if (counts) return sign * counts;
    if (!Number.isNaN(a.number) && a.number !== b.number) return sign * (a.number - b.number);
    return sign * a.text.localeCompare(b.text, "en", { numeric: true });
  }

  function sort(table, heading) {
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => row.className !== "group");
      const keyed = rows.map((row) => [key(row, heading.cellIndex), row]);
      keyed.sort((a, b) => compare(a[0], b[0], sign));
      body.append(...keyed.map((pair) => pair[1]));
    }
  }

  function filter(table, text, said) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    let all = 0;
    for (const body of table.tBodies) {
      let here = 0;
      for (const row of body.rows) {
        if (row.className === "group") continue;
        const whole = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join(" ");
        row.hidden = !words.every((word) => whole.includes(word));
        here += row.hidden ? 0 : 1;
        all += 1;
      }
      body.hidden = here === 0;
      shown += here;
    }
    said.textContent = words.length ? `${shown} of ${all} rows` : "";
  }

  let count = 0;
  for (const box of document.querySelectorAll(".table")) {
    const table = box.querySelector("table");
    for (const heading of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sort(table, heading));
      heading.append(button);
    }
    if (!box.hasAttribute("data-filter")) continue;
    count += 1;
    const line = document.createElement("div");
    const label = document.createElement("label");
    const input = document.createElement("input");
    const said = document.createElement("span");
    line.className = "filter";
    input.type = "search";
    input.id = `filter-${count}`;
    label.htmlFor = input.id;
    label.textContent = "Show rows with";
    input.setAttribute("aria-label", `Show rows with these words: ${table.getAttribute("aria-label")}`);
    said.setAttribute("role", "status");
    input.addEventListener("input", () => filter(table, input.value, said));
    line.append(label, input, said);
    box.insertBefore(line, box.querySelector(".scroll"));
  }

  // A link to a row that a filter hides shows it.
  function reveal() {
    const row = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    const box = row && row.closest(".table");
    const input = box && box.querySelector("input");
    if (row && row.hidden && input) {
      input.value = "";
      input.dispatchEvent(new Event("input"));
      row.scrollIntoView();
    }
  }
  window.addEventListener("hashchange", reveal);
})();
