"use strict";
// What a page does on a click. It is readable without any of this; here tables are sorted, filtered and paged, rows
// are opened, charts are drawn, and whatever names a row of the page's subject leads to it.
// All text goes into the page as text (textContent), never as HTML.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const number = new Intl.NumberFormat("en");

  function make(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  // ---------------------------------------------------------------- cells

  const textOf = {
    text: (cell) => cell,
    number: (cell) => cell[1],
    place: (cell) => cell[0],
    rows: (cell) => cell.map(([, name]) => name).join(", "),
  };

  const showCell = {
    text: (cell) => [cell],
    number: ([, text, heat]) => [make("span", { class: `heat-${heat}` }, text)],
    place: ([text, href]) => [href ? make("a", { href }, text) : text],
    rows: (cell) =>
      cell.flatMap(([row, name], at) => [
        at ? ", " : "",
        row === null ? make("span", {}, name) : make("a", { href: `#${data.subject}`, "data-row": row }, name),
      ]),
  };

  function compare(kind, column) {
    if (kind === "number") {
      return (one, other) => {
        const a = one[column][0];
        const b = other[column][0];
        if (a === null || b === null) return (a === null) - (b === null);
        return a - b;
      };
    }
    const collator = new Intl.Collator("en", { numeric: true });
    return (one, other) => collator.compare(textOf[kind](one[column]), textOf[kind](other[column]));
  }

  // ---------------------------------------------------------------- tables

  class Table {
    constructor(root, told) {
      this.root = root;
      this.told = told;
      this.body = root.querySelector("tbody");
      this.shownColumns = told.shown;
      this.page = 0;
      this.sort = { column: told.sortBy, descending: true };
      this.order = told.order;
      this.words = [];
      this.module = null;
      this.open = null;
      this.addHeadings();
      this.isLong = told.rows.length > told.pageRows;
      if (this.isLong || told.opens) this.addFilters();
      if (this.isLong) this.addPages();
      this.body.addEventListener("click", (event) => this.clicked(event));
      this.filter();
    }

    addHeadings() {
      this.headings = [...this.root.querySelectorAll("thead th")];
      this.headings.forEach((heading, at) => {
        const column = this.shownColumns[at];
        const button = make("button", { type: "button" }, heading.textContent);
        button.addEventListener("click", () => this.sortBy(column));
        heading.replaceChildren(button);
      });
    }

    addFilters() {
      this.input = make("input", { type: "search", placeholder: "name, operator, module, file…", spellcheck: "false" });
      this.input.addEventListener("input", () => {
        this.words = this.input.value.toLowerCase().split(/\s+/).filter(Boolean);
        this.filter();
      });
      this.chip = make("button", { type: "button", class: "chip", hidden: "" });
      this.chip.addEventListener("click", () => this.showModule(null));
      this.status = make("output", { "aria-live": "polite" });
      const label = make("label", {}, "Filter ", this.input);
      this.root.prepend(make("div", { class: "filters", role: "search" }, label, this.chip, this.status));
    }

    addPages() {
      this.back = make("button", { type: "button" }, "Previous");
      this.next = make("button", { type: "button" }, "Next");
      this.where = make("span");
      this.back.addEventListener("click", () => this.turn(this.page - 1));
      this.next.addEventListener("click", () => this.turn(this.page + 1));
      this.root.append(make("div", { class: "pages" }, this.back, this.next, this.where));
    }

    sortBy(column) {
      const isNumber = this.told.columns[column].kind === "number";
      const descending = this.sort.column === column ? !this.sort.descending : isNumber;
      this.sort = { column, descending };
      const rows = this.told.rows;
      const before = compare(this.told.columns[column].kind, column);
      const sign = descending ? -1 : 1;
      this.order = rows.map((_, at) => at).sort((a, b) => {
        if (isNumber && (rows[a][column][0] === null) !== (rows[b][column][0] === null)) {
          return before(rows[a], rows[b]); // rows without a number come last either way
        }
        return sign * before(rows[a], rows[b]) || a - b;
      });
      this.page = 0;
      this.filter();
    }

    searchText(row) {
      this.texts ??= new Map();
      let text = this.texts.get(row);
      if (text === undefined) {
        const cells = this.told.rows[row];
        const kinds = this.told.columns.map((column) => column.kind); // tensors that it is computed from do not count
        text = cells.map((cell, at) => (kinds[at] === "rows" ? "" : textOf[kinds[at]](cell))).join("\n").toLowerCase();
        this.texts.set(row, text);
      }
      return text;
    }

    isInModule(row) {
      const path = this.told.rows[row][this.told.moduleColumn];
      return path === this.module.path || path.startsWith(this.module.path + this.module.separator);
    }

    filter() {
      this.rows = this.order.filter(
        (row) =>
          (!this.module || this.isInModule(row)) &&
          (!this.words.length || this.words.every((word) => this.searchText(row).includes(word))),
      );
      this.turn(0);
      if (this.status) {
        this.status.textContent = `${number.format(this.rows.length)} of ${number.format(this.told.rows.length)} rows`;
      }
      this.headings.forEach((heading, at) => {
        if (this.shownColumns[at] !== this.sort.column) heading.removeAttribute("aria-sort");
        else heading.setAttribute("aria-sort", this.sort.descending ? "descending" : "ascending");
      });
    }

    turn(page) {
      const size = this.told.pageRows;
      const last = Math.max(0, Math.ceil(this.rows.length / size) - 1);
      this.page = Math.min(Math.max(page, 0), last);
      const start = this.page * size;
      const rows = this.isLong ? this.rows.slice(start, start + size) : this.rows;
      this.body.replaceChildren(...rows.map((row) => this.line(row)));
      this.open = null;
      if (this.where) {
        const end = Math.min(start + size, this.rows.length);
        this.where.textContent = `rows ${number.format(this.rows.length ? start + 1 : 0)} to ${number.format(end)}`;
        this.back.disabled = this.page === 0;
        this.next.disabled = this.page === last;
      }
    }

    line(row) {
      const cells = this.told.rows[row];
      const line = make("tr", { "data-row": row, class: this.told.opens ? "opens" : null });
      this.shownColumns.forEach((column, at) => {
        const kind = this.told.columns[column].kind;
        const whole = cells[column];
        const shown = showCell[kind](kind === "place" ? [whole[2], whole[1]] : whole);
        const cell = make("td", { class: kind });
        if (kind !== "number") cell.title = textOf[kind](whole);
        if (at === 0 && this.told.opens) {
          cell.append(make("button", { type: "button", class: "opener", "aria-expanded": "false" }, ...shown));
        } else {
          cell.append(...shown);
        }
        line.append(cell);
      });
      return line;
    }

    clicked(event) {
      if (!this.told.opens || event.target.closest("a")) return;
      const line = event.target.closest("tr.opens");
      if (line) this.toggle(line);
    }

    toggle(line) {
      const wasOpen = this.open && this.open.line === line;
      this.close();
      if (wasOpen) return;
      const row = Number(line.dataset.row);
      const list = make("dl", { class: "facts" });
      this.told.rows[row].forEach((cell, at) => {
        const { title, kind } = this.told.columns[at];
        if (textOf[kind](cell) === "") return;
        list.append(make("div", {}, make("dt", {}, title), make("dd", {}, ...showCell[kind](cell))));
      });
      const below = make("tr", { class: "opened" }, make("td", { colspan: this.shownColumns.length }, list));
      line.after(below);
      line.classList.add("picked");
      line.querySelector(".opener").setAttribute("aria-expanded", "true");
      this.open = { line, below };
      pickNodes(row);
    }

    close() {
      if (!this.open) return;
      this.open.below.remove();
      this.open.line.classList.remove("picked");
      this.open.line.querySelector(".opener").setAttribute("aria-expanded", "false");
      this.open = null;
    }

    showModule(module) {
      this.module = module;
      this.chip.hidden = !module;
      this.chip.textContent = module ? `in ${module.path} ✕` : "";
      this.chip.setAttribute("aria-label", module ? `in ${module.path}: show all again` : "");
      this.filter();
    }

    // Opens a row wherever it is; filters that hide it are taken away.
    show(row) {
      if (!this.rows.includes(row)) {
        this.words = [];
        if (this.input) this.input.value = "";
        this.showModule(null);
      }
      if (this.isLong) this.turn(Math.floor(this.rows.indexOf(row) / this.told.pageRows));
      const line = this.body.querySelector(`tr[data-row="${row}"]`);
      if (!this.open || this.open.line !== line) this.toggle(line);
      line.scrollIntoView({ block: "center" });
      line.querySelector(".opener").focus({ preventScroll: true });
    }
  }

  function pickNodes(row) {
    for (const node of document.querySelectorAll(".node.picked")) node.classList.remove("picked");
    for (const node of document.querySelectorAll(`.node[data-row="${row}"]`)) node.classList.add("picked");
  }

  // A wide drawing is shown where it matters.
  for (const drawing of document.querySelectorAll(".drawing")) {
    const centre = () => {
      const [view, node] = [drawing.querySelector(".scroll"), drawing.querySelector(".node.focus")];
      if (!node) return;
      const [outer, inner] = [view.getBoundingClientRect(), node.getBoundingClientRect()];
      view.scrollLeft += inner.left + inner.width / 2 - outer.left - outer.width / 2;
    };
    drawing.addEventListener("toggle", centre);
    centre();
  }

  const tables = new Map();
  for (const root of document.querySelectorAll("[data-table]")) {
    tables.set(root.dataset.table, new Table(root, data.tables[root.dataset.table]));
  }
  const subject = tables.get(data.subject);

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-row]");
    if (!link || !subject) return;
    event.preventDefault();
    subject.show(Number(link.dataset.row));
  });

  // ---------------------------------------------------------------- the module tree

  for (const name of document.querySelectorAll(".tree [data-module]")) {
    const button = make("button", { type: "button", title: "Show its tensors" }, name.textContent);
    button.addEventListener("click", (event) => {
      event.preventDefault(); // within a summary: the tree stays as it is
      const separator = name.closest(".tree").dataset.separator;
      subject.showModule({ path: name.dataset.module, separator });
      subject.root.scrollIntoView();
    });
    name.replaceChildren(button);
  }

  // ---------------------------------------------------------------- charts

  function coloured(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      if (!name) return value;
      return plainColour(style.getPropertyValue(name[1]));
    }
    if (Array.isArray(value)) return value.map((each) => coloured(each, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, style)]));
    }
    return value;
  }

  // Plotly knows no light-dark(); the browser works out what it is.
  const probe = make("span", { hidden: "" });
  document.body.append(probe);
  function plainColour(text) {
    probe.style.color = text;
    return getComputedStyle(probe).color;
  }

  function drawCharts() {
    if (typeof Plotly === "undefined") return;
    const style = getComputedStyle(document.documentElement);
    const frame = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: "var(--ink)", family: "system-ui, sans-serif", size: 12 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "var(--faint)", activecolor: "var(--ink)" },
      hoverlabel: { bgcolor: "var(--raised)", bordercolor: "var(--line)", font: { color: "var(--ink)" }, align: "left" },
    };
    const axis = { gridcolor: "var(--line)", linecolor: "var(--line)", zerolinecolor: "var(--line)" };
    for (const place of document.querySelectorAll("[data-chart]")) {
      const { traces, layout } = data.charts[place.dataset.chart];
      const whole = { ...frame, ...layout };
      for (const key of ["xaxis", "yaxis"]) whole[key] = { ...axis, ...layout[key] };
      const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
      Plotly.react(place, coloured(traces, style), coloured(whole, style), options);
      if (!place.dataset.listens) {
        place.dataset.listens = "yes";
        place.on("plotly_click", (event) => {
          const row = event.points[0].customdata;
          if (typeof row === "number" && subject) subject.show(row);
        });
      }
    }
  }
  drawCharts();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);

  document.documentElement.dataset.ready = "yes";
})();
