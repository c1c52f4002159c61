"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    const numeric = head.classList.contains("number");
    const descending = before ? before === "ascending" : numeric;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const number = (row) => Number(row.cells[column].dataset.number.replace("inf", "Infinity"));
    const compare = numeric
      ? (one, other) => number(one) - number(other) || 0
      : (one, other) => one.cells[column].textContent.localeCompare(other.cells[column].textContent);
    const rows = Array.from(table.tBodies[0].rows).sort((one, other) => compare(one, other) * (descending ? -1 : 1));
    table.tBodies[0].append(...rows);
  }));
}
