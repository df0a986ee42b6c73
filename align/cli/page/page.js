"use strict";
// Tables of rows, or of changed rows, to sort, filter and search. Data are text: they come in as JSON and go out through
// textContent only. The view is kept in the URL's hash, so that it can be shared.
(() => {
  const PAGE_SIZE = 100;
  const MAX_PREVIEW = 280; // characters of a cell
  const CONTEXT = 40; // characters around a change in a cell
  const MAX_CHOICES = 20; // values of a column to choose from
  const MAX_COMPARISONS = { cell: 2.5e5, full: 5e6 }; // a word diff compares every token with every other
  const ORDER = ["short", "number", "text", "choice"]; // of columns: what identifies a row comes first
  const SIGNS = { changed: "~ changed", added: "+ added", removed: "\u2212 removed" };
  const KINDS = Object.keys(SIGNS);

  const collator = new Intl.Collator("en", { numeric: true });
  const own = (object, key) => (object !== null && Object.hasOwn(object, key) ? object[key] : undefined);
  const count = (number) => number.toLocaleString("en");
  const isEmpty = (data) => data === undefined || data === null || data === "" || (Array.isArray(data) && !data.length);
  const same = (a, b) => a === b || JSON.stringify(a) === JSON.stringify(b);

  // ---- elements

  /** Create an element; attributes that it has as properties, such as `onclick`, are set as such. */
  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, item] of Object.entries(attributes)) {
      if (key in node) node[key] = item;
      else node.setAttribute(key, item);
    }
    node.append(...children);
    return node;
  }

  // Control characters, marks that hide or reorder text, and halves of surrogate pairs.
  const CONTROL =
    /([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]|[\ud800-\udfff])/u;

  /** Append a text to a node, with a visible name in place of each character that cannot be seen. */
  function write(node, text) {
    text.split(CONTROL).forEach((part, number) => {
      if (number % 2) {
        const name = "U+" + part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
        node.append(element("span", { className: "control", textContent: name }));
      } else if (part) node.append(part);
    });
    return node;
  }

  const written = (name, className, text, attributes = {}) => write(element(name, { className, ...attributes }), text);
  const value = (text, className = "") => written("span", `value ${className}`, text, { dir: "auto" });
  const none = (text) => written("span", "none", text);
  const button = (text, onclick, attributes = {}) => written("button", "", text, { type: "button", onclick, ...attributes });
  const selectNode = (label, choices) =>
    element("select", { "aria-label": label }, ...choices.map(([key, text]) => written("option", "", text, { value: key })));
  const badge = (kind) => written("span", `badge ${kind}`, SIGNS[kind]);

  // ---- values as text

  const isText = (data) => typeof data === "string";
  /** Return the [label, text] pairs of a conversation or a list of texts; null for other values. */
  function messages(data) {
    if (!Array.isArray(data) || !data.length) return null;
    if (data.every(isText)) return data.map((text, number) => [String(number + 1), text]);
    const isMessage = (item) => isText(item?.role) && isText(item?.content);
    return data.every(isMessage) ? data.map(({ role, content }) => [role, content]) : null;
  }

  /** Return a number with at most four digits if it is not whole; an open row has all of them. */
  const short = (number, digits = 4) => (Number.isInteger(number) ? String(number) : String(Number(number.toPrecision(digits))));

  function plain(data) {
    if (data === undefined || data === null) return "";
    if (isText(data)) return data;
    if (typeof data === "number") return short(data);
    const pairs = messages(data);
    if (!pairs) return JSON.stringify(data);
    return pairs.length === 1 ? pairs[0][1] : pairs.map(([label, text]) => `${label}: ${text}`).join("\n");
  }

  /** Return the beginning of a text, or the part around the first match. */
  function preview(text, query) {
    const match = query ? text.toLowerCase().indexOf(query) : -1;
    const start = match > MAX_PREVIEW - query.length - 20 ? match - 60 : 0;
    const cut = text.slice(start, start + MAX_PREVIEW);
    return (start ? "\u2026" : "") + cut + (start + MAX_PREVIEW < text.length ? "\u2026" : "");
  }

  // ---- word diff

  const UNSPACED = "\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}"; // one token per character
  // A token begins with the space before it.
  const TOKEN = new RegExp(`\\s*(?:[${UNSPACED}]|(?:(?![${UNSPACED}])(?:[\\p{L}\\p{M}\\p{N}_]|['\u2019](?=\\p{L})))+|[^\\s]|$)`, "gu");
  const TAGS = { "=": "span", "-": "del", "+": "ins" };

  /** Return the lengths of the longest common subsequences of a[i:] and b[j:], at i * (b.length + 1) + j. */
  function commonLengths(a, b) {
    const width = b.length + 1;
    const lengths = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        const at = i * width + j;
        lengths[at] = a[i] === b[j] ? lengths[at + width + 1] + 1 : Math.max(lengths[at + width], lengths[at + 1]);
      }
    }
    return lengths;
  }

  /** Return [sign, text] pairs, or null if the texts are too long, or have too little in common, for a word diff. */
  function wordDiff(a, b, limit) {
    const [left, right] = [a.match(TOKEN) ?? [], b.match(TOKEN) ?? []];
    const shorter = Math.min(left.length, right.length);
    let [head, tail] = [0, 0];
    while (head < shorter && left[head] === right[head]) head++;
    while (tail < shorter - head && left.at(-1 - tail) === right.at(-1 - tail)) tail++;
    const [old, now] = [left, right].map((tokens) => tokens.slice(head, tokens.length - tail));
    if (old.length * now.length > limit) return null;
    const parts = [];
    let [removed, added, kept] = ["", "", left.slice(0, head).join("")];
    const flush = () => {
      for (const part of [["-", removed], ["+", added], ["=", kept]]) if (part[1]) parts.push(part);
      removed = added = kept = "";
    };
    const lengths = commonLengths(old, now);
    for (let i = 0, j = 0; i < old.length || j < now.length;) {
      const at = i * (now.length + 1) + j;
      if (old[i] === now[j]) kept += old[i++], j++;
      else {
        if (kept) flush();
        if (j === now.length || (i < old.length && lengths[at + now.length + 1] >= lengths[at + 1])) removed += old[i++];
        else added += now[j++];
      }
    }
    kept += left.slice(left.length - tail).join("");
    flush();
    // Single words in common mean nothing.
    const common = parts.reduce((sum, [sign, text]) => sum + (sign === "=" && text.length >= 8 ? text.length : 0), 0);
    return common < 0.3 * Math.min(a.length, b.length) ? null : parts;
  }

  function shortened(parts) {
    const last = parts.length - 1;
    return parts.map(([sign, text], number) => {
      if (sign !== "=") return [sign, text.length > 160 ? text.slice(0, 150) + "\u2026" : text];
      if (text.length <= 2.5 * CONTEXT) return [sign, text];
      const before = number === 0 ? "" : text.slice(0, CONTEXT).replace(/\S+$/, "");
      const after = number === last ? "" : text.slice(-CONTEXT).replace(/^\S+/, "");
      return [sign, `${before}\u2026${after}`];
    });
  }

  /** Append the diff of two texts to a node: word by word, or both texts if that makes no sense. */
  function writeDiff(node, a, b, full) {
    const parts = wordDiff(a, b, MAX_COMPARISONS[full ? "full" : "cell"]);
    const shown = parts ?? (full ? [["-", a], ["+", b]] : [["-", a], ["=", " "], ["+", b]]);
    if (full && !parts) node.classList.add("rewrite");
    for (const [sign, text] of full ? shown : shortened(shown)) node.append(written(TAGS[sign], "", text));
    return node;
  }

  // ---- full values of an open row

  function messageNode(role, body) {
    const known = ["user", "assistant", "system"].includes(role) ? role : "";
    return element("div", { className: `message ${known}` }, written("div", "role", role), body);
  }

  function fullValue(data) {
    if (isEmpty(data)) return none(data === "" ? "(empty text)" : "\u2013");
    const pairs = messages(data);
    if (pairs) return element("div", {}, ...pairs.map(([label, text]) => messageNode(label, value(text))));
    return value(isText(data) ? data : JSON.stringify(data, null, 1));
  }

  function fullChange(a, b) {
    if (typeof a === "number" && typeof b === "number") return element("span", {}, ...numberChange(a, b, String));
    const diff = (old, now) => writeDiff(element("div", { className: "value", dir: "auto" }), old, now, true);
    const [left, right] = [messages(a), messages(b)];
    if (left?.length !== right?.length || !left) return diff(plain(a), plain(b));
    return element("div", {}, ...left.map(([label, text], number) => {
      const [newLabel, newText] = right[number];
      return messageNode(label === newLabel ? label : `${label} \u2192 ${newLabel}`, diff(text, newText));
    }));
  }

  const deltaNode = (delta) =>
    written("span", delta > 0 ? "up" : "down", `(${delta > 0 ? "+" : "\u2212"}${short(Math.abs(delta), 3)})`);
  const numberChange = (old, now, show) => [written("span", "old", show(old)), ` \u2192 ${show(now)} `, deltaNode(now - old)];

  // ---- histograms

  /** Draw the share of rows in each bin, so that sides of different sizes compare. */
  function histogramNode({ name, edges, a, b }, sides) {
    const series = (b ? [a, b] : [a]).map((counts) => ({ counts, sum: counts.reduce((sum, n) => sum + n, 0) }));
    const share = ({ counts, sum }, bin) => counts[bin] / (sum || 1);
    const bins = [...a.keys()];
    const highest = Math.max(0.001, ...series.flatMap((side) => bins.map((bin) => share(side, bin))));
    const bars = bins.flatMap((bin) => series.map((side, number) => {
      const range = `${short(edges[bin])} to ${short(edges[bin + 1])}: ${count(side.counts[bin])} of ${count(side.sum)}`;
      const bar = element("span", { className: number || !b ? "b" : "a", title: sides ? `${sides[number]}, ${range}` : range });
      bar.style.height = `${(100 * share(side, bin)) / highest}%`;
      return bar;
    }));
    const scale = [short(edges[0]), `up to ${Math.round(100 * highest)}% of rows`, short(edges.at(-1))];
    const legend = (side, number) => written("span", `legend ${"ab"[number]}`, `${side} (${count(series[number].sum)})`);
    return element("figure", {},
      element("figcaption", {}, written("strong", "", name), ...(b && sides ? sides.map(legend) : [])),
      element("div", { className: "bars", role: "img", "aria-label": `histogram of ${name}` }, ...bars),
      element("div", { className: "scale" }, ...scale.map((text) => written("span", "", text))));
  }

  // ---- records: {index, kind, a, b}, where a plain row is b

  const oldOf = ({ a }, name) => own(a, name);
  const newOf = ({ a, b }, name) => own(b ?? a, name); // of a removed row its last value
  const deltaOf = ({ a, b }, name) => {
    const [old, now] = [own(a, name), own(b, name)];
    return typeof old === "number" && typeof now === "number" ? now - old : undefined;
  };

  function texts(data) {
    if (data === null || typeof data !== "object") return isEmpty(data) ? [] : [String(data)];
    return Object.values(data).flatMap(texts);
  }

  /** Return each column with its type and the choice of its values. */
  function describe(records) {
    const rows = records.flatMap(({ a, b }) => [a, b].filter(Boolean));
    return [...new Set(rows.flatMap((row) => Object.keys(row)))].map((name) => {
      const values = rows.map((row) => own(row, name)).filter((item) => !isEmpty(item));
      const choices = new Set(values.map(String));
      const isLong = (item) => typeof item === "number" || typeof item === "object" || String(item).length > 40;
      let type = choices.size <= Math.min(MAX_CHOICES, records.length / 2) ? "choice" : "short";
      if (!values.length) type = "empty";
      else if (values.every((item) => typeof item === "number")) type = "number";
      else if (values.some(isLong)) type = "text";
      return { name, type, choices };
    });
  }

  // ---- a section

  class Table {
    constructor(section) {
      this.section = section;
      Object.assign(this, JSON.parse(section.querySelector("script.about").textContent)); // name, sides, histograms
      this.state = new URLSearchParams();
    }

    /** Show the section in a state; its rows are read when it is first shown. */
    show(state) {
      if (!this.records) {
        this.read();
        this.build();
      }
      this.state = state;
      this.search.value = state.get("q") ?? "";
      for (const [key, control] of this.filters) control.value = state.get(key) ?? "";
      if (this.filters.some(([, control]) => control.value)) this.filterBox.open = true;
      this.update();
    }

    read() {
      const scripts = [...this.section.querySelectorAll("script.rows")];
      this.records = scripts.flatMap((script) => JSON.parse(script.textContent)).map((row, index) => {
        const [kind, a, b] = this.sides ? row : ["row", null, row];
        return { index, kind, a, b };
      });
      scripts.forEach((script) => script.remove()); // otherwise their text stays in memory
      this.columns = describe(this.records);
      this.shown = ORDER.flatMap((type) => this.columns.filter((column) => column.type === type));
    }

    build() {
      if (this.histograms.length) {
        const figures = this.histograms.map((histogram) => histogramNode(histogram, this.sides));
        this.section.append(element("div", { className: "histograms" }, ...figures));
      }
      if (!this.records.length) this.section.append(written("p", "note", this.sides ? "No row differs." : "No rows."));
      this.section.append(this.buildBar(), this.buildFilters());
      this.body = element("tbody", { onclick: (event) => this.clicked(event), onkeydown: (event) => this.moved(event) });
      this.box = element("div", { className: "box", tabIndex: -1 }, element("table", {}, this.buildHead(), this.body));
      this.section.append(this.box);
    }

    buildBar() {
      this.search = element("input", { type: "search", placeholder: "Search all columns (/)", "aria-label": "search all columns" });
      let timer;
      this.search.oninput = () => {
        clearTimeout(timer);
        timer = setTimeout(() => this.change("q", this.search.value), 150);
      };
      this.counter = element("span", { className: "counter", role: "status" });
      this.pageText = element("span", { className: "counter" });
      const turn = (by) => () => this.change("page", String(this.page + by));
      this.previous = button("\u2190", turn(-1), { "aria-label": "previous page" });
      this.next = button("\u2192", turn(1), { "aria-label": "next page" });
      this.pager = element("span", { className: "pager" }, this.previous, this.pageText, this.next);
      return element("div", { className: "bar" }, this.search, this.counter, this.pager);
    }

    /** Build the filters: the kind of change, the range of each number, and the value of each column with few. */
    buildFilters() {
      this.filters = [];
      const list = element("div");
      const add = (name, ...fields) => list.append(element("fieldset", {}, written("legend", "", name), ...fields));
      if (this.sides) add("change", this.filter("kind", selectNode("change", [["", "any"], ...Object.entries(SIGNS)])));
      for (const { name, type, choices } of this.shown) {
        if (type === "number") {
          const [min, max] = ["min", "max"].map((end) => {
            const attributes = { type: "number", step: "any", placeholder: end, "aria-label": `${name} ${end}` };
            return this.filter(`${end}.${name}`, element("input", attributes));
          });
          const values = [["", "new value"], ["old", "old value"], ["delta", "new \u2212 old"]];
          add(name, min, max, ...(this.sides ? [this.filter(`of.${name}`, selectNode(`${name}: which`, values))] : []));
        } else if (type === "choice") {
          const values = [...choices].sort(collator.compare).map((text) => [`=${text}`, text]);
          add(name, this.filter(`is.${name}`, selectNode(name, [["", "any"], ...values])));
        }
      }
      list.append(button("Clear all", () => {
        this.show(new URLSearchParams());
        save();
      }));
      this.filterTitle = element("summary");
      this.filterBox = element("details", { className: "filters", hidden: !this.filters.length }, this.filterTitle, list);
      return this.filterBox;
    }

    /** Connect a control to a key of the state. */
    filter(key, control) {
      control.addEventListener(control.matches("select") ? "change" : "input", () => this.change(key, control.value));
      this.filters.push([key, control]);
      return control;
    }

    buildHead() {
      this.sorters = [];
      const sorter = (key, text, title, className = "") => {
        const node = button(text, () => this.sortBy(key), { title: `sort by ${title}`, className });
        this.sorters.push([key, node]);
        return node;
      };
      const row = element("tr", {}, element("th"));
      if (this.sides) row.append(element("th", { scope: "col" }, sorter("kind", "change", "change")));
      for (const { name, type } of this.shown) {
        const head = element("th", { className: type, scope: "col" }, sorter(`by.${name}`, name, name));
        if (this.sides && type === "number") head.append(sorter(`delta.${name}`, "\u0394", `new \u2212 old of ${name}`, "delta"));
        row.append(head);
      }
      return element("thead", {}, row);
    }

    /** Sort up, then down, then as in the file. */
    sortBy(key) {
      const now = this.state.get("sort");
      this.change("sort", now === key ? `-${key}` : now === `-${key}` ? "" : key);
    }

    /** Set one key of the state, and show the result. */
    change(key, text) {
      if (key !== "page") this.state.delete("page");
      this.set(key, text);
      this.update();
      save();
    }

    set(key, text) {
      if (text) this.state.set(key, text);
      else this.state.delete(key);
    }

    update() {
      this.query = (this.state.get("q") ?? "").toLowerCase();
      const tests = this.tests();
      this.view = this.sorted(this.records.filter((record) => tests.every((test) => test(record))));
      const pages = Math.max(1, Math.ceil(this.view.length / PAGE_SIZE));
      this.page = Math.min(pages, Math.max(1, Number.parseInt(this.state.get("page") ?? "1", 10) || 1));
      this.counter.textContent = `shown ${count(this.view.length)} of ${count(this.records.length)}`;
      this.pageText.textContent = `page ${count(this.page)} of ${count(pages)}`;
      this.pager.hidden = pages === 1;
      this.previous.disabled = this.page === 1;
      this.next.disabled = this.page === pages;
      const active = this.filters.filter(([key]) => !key.startsWith("of.") && this.state.get(key)).length;
      this.filterTitle.textContent = active ? `Filters (${active} on)` : "Filters";
      const sort = this.state.get("sort");
      for (const [key, sorter] of this.sorters) {
        sorter.dataset.sort = sort === key ? " \u25b2" : sort === `-${key}` ? " \u25bc" : "";
      }
      this.render();
    }

    /** Return functions that are all true for a record to show. */
    tests() {
      const tests = [];
      if (this.query) {
        tests.push((record) => {
          record.text ??= texts([record.a, record.b]).join("\n").toLowerCase();
          return record.text.includes(this.query);
        });
      }
      const kind = this.sides && this.state.get("kind");
      if (kind) tests.push((record) => record.kind === kind);
      for (const { name, type } of this.shown) {
        const [min, max, which, choice] = ["min", "max", "of", "is"].map((key) => this.state.get(`${key}.${name}`));
        if (type === "number" && (min || max)) {
          const [low, high] = [min ? Number(min) : -Infinity, max ? Number(max) : Infinity];
          const get = which === "old" ? oldOf : which === "delta" ? deltaOf : newOf;
          tests.push((record) => {
            const number = get(record, name);
            return typeof number === "number" && low <= number && number <= high;
          });
        } else if (type === "choice" && choice) {
          tests.push(({ a, b }) => [a, b].some((row) => "=" + String(own(row, name) ?? "") === choice));
        }
      }
      return tests;
    }

    /** Sort stably: numbers before texts, and records without a value last in both directions. */
    sorted(view) {
      const [, sign, way, name] = /^(-?)(kind|by|delta)(?:\.(.*))?$/s.exec(this.state.get("sort") ?? "") ?? [];
      if (!way || (way !== "kind" && !this.shown.some((column) => column.name === name))) return view;
      const get = { kind: (record) => KINDS.indexOf(record.kind), by: newOf, delta: deltaOf }[way];
      const keyed = view.map((record) => {
        const key = get(record, name);
        return { record, key: typeof key === "number" ? key : isEmpty(key) ? undefined : plain(key) };
      });
      keyed.sort((x, y) => {
        if (x.key === undefined || y.key === undefined) return (x.key === undefined) - (y.key === undefined);
        const order = isText(x.key) - isText(y.key) || (isText(x.key) ? collator.compare(x.key, y.key) : x.key - y.key);
        return sign ? -order : order;
      });
      return keyed.map(({ record }) => record);
    }

    render() {
      this.body.replaceChildren();
      const open = new Set((this.state.get("open") ?? "").split(","));
      for (const record of this.view.slice((this.page - 1) * PAGE_SIZE, this.page * PAGE_SIZE)) {
        const row = this.rowNode(record);
        this.body.append(row);
        if (open.has(String(record.index))) this.expand(row);
      }
      if (!this.view.length && this.records.length) {
        const cell = element("td", { className: "empty", colSpan: this.width(), textContent: "No row passes the filters." });
        this.body.append(element("tr", {}, cell));
      }
      this.box.scrollTop = 0;
    }

    width() {
      return this.shown.length + (this.sides ? 2 : 1);
    }

    rowNode(record) {
      const cells = this.shown.map((column) => this.cellNode(record, column));
      if (this.sides) cells.unshift(element("td", { className: "short", "data-column": "change" }, badge(record.kind)));
      const toggle = button("", null, { "aria-expanded": "false", "aria-label": `row ${record.index + 1} in full` });
      const row = element("tr", { className: "row" }, element("td", { className: "toggle" }, toggle), ...cells);
      return Object.assign(row, { record, toggle });
    }

    cellNode(record, { name, type }) {
      const cell = element("td", { className: type === "choice" ? "short" : type, "data-column": name });
      const [old, now] = [oldOf(record, name), newOf(record, name)];
      if (record.kind !== "changed" || same(old, now)) {
        cell.classList.toggle("same", record.kind === "changed");
        cell.append(isEmpty(now) ? none("\u2013") : value(preview(plain(now), this.query), "clamp"));
      } else if (deltaOf(record, name) !== undefined) cell.append(...numberChange(old, now, (number) => short(number)));
      else cell.append(writeDiff(value("", "clamp"), plain(old), plain(now), false));
      return cell;
    }

    clicked(event) {
      const row = event.target.closest("tr.row");
      if (!row || String(getSelection())) return;
      if (row.detail) {
        row.detail.remove();
        row.detail = null;
        row.toggle.setAttribute("aria-expanded", "false");
      } else this.expand(row);
      const open = [...this.body.querySelectorAll("tr.row")].filter((other) => other.detail);
      this.set("open", open.map((other) => other.record.index).join(","));
      save();
    }

    /** Move from row to row with the arrow keys. */
    moved(event) {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      const rows = [...this.body.querySelectorAll("tr.row")];
      const at = rows.indexOf(event.target.closest("tr.row"));
      if (!step || at < 0) return;
      rows[at + step]?.toggle.focus();
      event.preventDefault();
    }

    expand(row) {
      const list = element("dl");
      for (const { name } of this.columns) {
        const [old, now] = [oldOf(row.record, name), newOf(row.record, name)];
        if (old === undefined && now === undefined) continue;
        const compared = row.record.kind === "changed";
        const equal = !compared || same(old, now);
        const content = equal ? fullValue(now) : fullChange(old, now);
        list.append(written("dt", "", name), element("dd", { className: compared && equal ? "same" : "" }, content));
      }
      row.detail = element("tr", { className: "detail" }, element("td", { colSpan: this.width() }, list));
      row.after(row.detail);
      row.toggle.setAttribute("aria-expanded", "true");
    }
  }

  // ---- the page

  const tables = [...document.querySelectorAll("main > section")].map((section) => new Table(section));
  const nav = document.querySelector("nav");
  let current = null;

  function save() {
    const state = new URLSearchParams(current.state);
    if (tables.length > 1) state.set("section", current.name);
    const hash = state.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function open(table, state) {
    current = table;
    tables.forEach((other, number) => {
      other.section.hidden = other !== table;
      nav.children[number]?.setAttribute("aria-pressed", String(other === table));
    });
    table.show(state);
  }

  function openHash() {
    const state = new URLSearchParams(location.hash.slice(1));
    const table = tables.find((other) => other.name === state.get("section")) ?? tables[0];
    state.delete("section");
    if (table) open(table, state);
  }

  for (const table of tables.length > 1 ? tables : []) {
    nav.append(button(table.name, () => {
      open(table, table.state);
      save();
    }));
  }
  addEventListener("hashchange", openHash);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      current?.search.focus();
    }
  });
  openHash();
})();
