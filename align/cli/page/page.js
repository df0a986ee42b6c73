"use strict";
// Tables of rows, or of changes of rows, to sort, filter and search. Data are text: they come in as JSON, and go out
// through textContent alone. What is shown stands in the URL's hash, so that a view can be shared.
(() => {
  const PAGE_SIZE = 100;
  const MAX_PREVIEW = 280; // characters of a cell
  const MAX_CHOICES = 20; // values of a column that can be picked from
  // A word diff takes time and memory that grow with the square of the words that differ; beyond, texts stand whole.
  const MAX_EDITS = { preview: 600, full: 2500 };
  const ORDER = ["short", "number", "text", "choice"]; // of columns: what tells rows apart comes before what is read
  const KINDS = ["changed", "added", "removed"];
  const SIGNS = { added: "+ added", removed: "\u2212 removed", changed: "~ changed" };

  const collator = new Intl.Collator("en", { numeric: true });
  const own = (object, key) => (object !== null && Object.hasOwn(object, key) ? object[key] : undefined);
  const count = (number) => number.toLocaleString("en");
  const isEmpty = (data) => data === undefined || data === null || data === "" || (Array.isArray(data) && !data.length);

  /** Whether two JSON values are equal, whatever the order of keys. */
  function same(a, b) {
    if (a === b) return true;
    if (a === null || b === null || typeof a !== "object" || typeof b !== "object") return false;
    const keys = Object.keys(a);
    return Array.isArray(a) === Array.isArray(b) && keys.length === Object.keys(b).length &&
      keys.every((key) => Object.hasOwn(b, key) && same(a[key], b[key]));
  }

  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, item] of Object.entries(attributes)) {
      if (key in node) node[key] = item;
      else node.setAttribute(key, item);
    }
    node.append(...children);
    return node;
  }

  // ---- text

  // Control characters, marks that hide or reorder what follows, halves of surrogate pairs.
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

  const written = (name, className, text) => write(element(name, { className }), text);
  const value = (text, className = "") => {
    const node = written("span", `value ${className}`, text);
    node.dir = "auto";
    return node;
  };

  const isConversation = (data) =>
    Array.isArray(data) && data.length > 0 &&
    data.every((item) => item && typeof item === "object" && typeof item.role === "string" && typeof item.content === "string");

  /** Return a number to at most four digits if it is not whole; an open row has all. */
  const short = (number, digits = 4) => (Number.isInteger(number) ? String(number) : String(Number(number.toPrecision(digits))));

  function plain(data) {
    if (data === undefined || data === null) return "";
    if (typeof data === "string") return data;
    if (typeof data === "number") return short(data);
    if (isConversation(data)) {
      return data.length === 1 ? data[0].content : data.map((message) => `${message.role}: ${message.content}`).join("\n");
    }
    if (Array.isArray(data) && data.every((item) => typeof item === "string")) return data.join("\n");
    return JSON.stringify(data);
  }

  /** Return the beginning of a text, or what lies around the first match. */
  function preview(text, query) {
    const found = query ? text.toLowerCase().indexOf(query) : -1;
    const start = found > MAX_PREVIEW - query.length - 20 ? found - 60 : 0;
    const cut = text.slice(start, start + MAX_PREVIEW);
    return (start ? "\u2026" : "") + cut + (start + MAX_PREVIEW < text.length ? "\u2026" : "");
  }

  // ---- word diff

  const UNSPACED = "\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}"; // one token a character
  const TOKEN = new RegExp(`\\s+|[${UNSPACED}]|(?:(?![${UNSPACED}])(?:[\\p{L}\\p{M}\\p{N}_]|['\u2019](?=\\p{L})))+|[^]`, "gu");

  /** Myers' shortest edit script of two arrays of numbers, or null if it has more than `limit` edits. */
  function shortestEdit(a, b, limit) {
    const max = Math.min(a.length + b.length, limit);
    const offset = max + 1;
    const furthest = new Int32Array(2 * max + 3);
    const trace = [];
    for (let d = 0; d <= max; d++) {
      for (let k = -d; k <= d; k += 2) {
        const down = k === -d || (k !== d && furthest[offset + k - 1] < furthest[offset + k + 1]);
        let x = down ? furthest[offset + k + 1] : furthest[offset + k - 1] + 1;
        while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
        furthest[offset + k] = x;
        if (x >= a.length && x - k >= b.length) return backtrack(a, b, d, trace);
      }
      trace.push(furthest.slice(offset - d, offset + d + 1)); // by k + d
    }
    return null;
  }

  function backtrack(a, b, edits, trace) {
    const signs = []; // from the end
    let x = a.length;
    let y = b.length;
    for (let d = edits; d > 0; d--) {
      const k = x - y;
      const before = (diagonal) => trace[d - 1][diagonal + d - 1];
      const down = k === -d || (k !== d && before(k - 1) < before(k + 1));
      const fromX = down ? before(k + 1) : before(k - 1);
      const fromY = fromX - (down ? k + 1 : k - 1);
      while (x > fromX && y > fromY) signs.push("="), x--, y--;
      signs.push(down ? "+" : "-");
      x = fromX;
      y = fromY;
    }
    while (x-- > 0) signs.push("=");
    return signs.reverse();
  }

  /** Return [sign, text] pairs, sign one of = - +, or null where the texts have too little in common to be woven. */
  function wordDiff(a, b, limit) {
    const left = a.match(TOKEN) ?? [];
    const right = b.match(TOKEN) ?? [];
    let head = 0;
    while (head < left.length && head < right.length && left[head] === right[head]) head++;
    let tail = 0;
    while (tail < left.length - head && tail < right.length - head && left.at(-1 - tail) === right.at(-1 - tail)) tail++;
    const numbers = new Map();
    const number = (token) => numbers.get(token) ?? (numbers.set(token, numbers.size), numbers.size - 1);
    const middle = (tokens) => tokens.slice(head, tokens.length - tail);
    const signs = shortestEdit(middle(left).map(number), middle(right).map(number), limit);
    if (signs === null) return null;
    const parts = joined(left, right, [...Array(head).fill("="), ...signs, ...Array(tail).fill("=")]);
    // A word here and there that both have says nothing.
    const common = parts.reduce((sum, [sign, text]) => sum + (sign === "=" && text.length >= 8 ? text.length : 0), 0);
    return common < 0.3 * Math.min(a.length, b.length) ? null : parts;
  }

  /** Join tokens of one sign; between two changes no space stays alone, and what is removed comes before what is added. */
  function joined(left, right, signs) {
    const parts = [];
    let [x, y, removed, added, space] = [0, 0, "", "", ""];
    const flush = () => {
      if (removed) parts.push(["-", removed]);
      if (added) parts.push(["+", added]);
      removed = added = "";
    };
    const equal = (text) => {
      if (parts.length && parts.at(-1)[0] === "=" ) parts.at(-1)[1] += text;
      else if (text) parts.push(["=", text]);
    };
    for (const sign of signs) {
      if (sign === "=") {
        const token = left[x];
        x++, y++;
        if ((removed || added) && /^\s+$/.test(token) && !space) space = token;
        else {
          flush();
          equal(space + token);
          space = "";
        }
        continue;
      }
      if (space) {
        removed += space;
        added += space;
        space = "";
      }
      if (sign === "-") removed += left[x++];
      else added += right[y++];
    }
    flush();
    equal(space);
    return parts;
  }

  const CONTEXT = 40; // characters around a change in a cell

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

  const TAGS = { "=": "span", "-": "del", "+": "ins" };

  function writeDiff(node, a, b, full) {
    const parts = wordDiff(a, b, full ? MAX_EDITS.full : MAX_EDITS.preview);
    if (parts === null && a.length + b.length > 120) {
      node.classList.remove("clamp");
      node.classList.add(full ? "rewrite" : "stacked");
      const part = (tag, text) => written(tag, full ? "value" : "value clamp", full ? text : preview(text, ""));
      node.append(part("del", a), part("ins", b));
      return node;
    }
    const shown = parts ?? [["-", a], ["=", " "], ["+", b]];
    for (const [sign, text] of full ? shown : shortened(shown)) node.append(written(TAGS[sign], "", text));
    return node;
  }

  /** Fills cells with their word diffs when they come into view. */
  const lazily = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      lazily.unobserve(entry.target);
      entry.target.fill();
    }
  }, { rootMargin: "200px" });

  // ---- full text of a row

  function fullValue(data) {
    if (isConversation(data)) {
      return element("div", {}, ...data.map((message) => messageNode(message.role, value(message.content))));
    }
    if (Array.isArray(data) && data.length && data.every((item) => typeof item === "string")) {
      return element("div", {}, ...data.map((text, number) => messageNode(String(number + 1), value(text))));
    }
    if (data === null || data === undefined) return element("span", { className: "none", textContent: "\u2013" });
    if (data === "") return element("span", { className: "none", textContent: "(empty text)" });
    return value(typeof data === "string" ? data : JSON.stringify(data, null, 1));
  }

  function messageNode(role, body) {
    const kind = ["user", "assistant", "system"].includes(role) ? role : "";
    return element("div", { className: `message ${kind}` }, written("div", "role", role), body);
  }

  function fullChange(a, b) {
    const difference = (old, now) => {
      const node = element("div", { className: "value", dir: "auto" });
      return writeDiff(node, old, now, true);
    };
    if (isConversation(a) && isConversation(b) && a.length === b.length) {
      return element("div", {}, ...a.map((message, number) => {
        const now = b[number];
        const role = message.role === now.role ? message.role : `${message.role} \u2192 ${now.role}`;
        return messageNode(role, difference(message.content, now.content));
      }));
    }
    if (typeof a === "number" && typeof b === "number") {
      return element("span", {}, `${a} \u2192 ${b} `, deltaNode(b - a));
    }
    if (a === undefined || b === undefined || a === null || b === null) {
      return element("div", {}, element("del", {}, fullValue(a)), " ", element("ins", {}, fullValue(b)));
    }
    return difference(plain(a), plain(b));
  }

  const deltaNode = (delta) =>
    element("span", {
      className: delta > 0 ? "up" : "down",
      textContent: `(${delta > 0 ? "+" : "\u2212"}${short(Math.abs(delta), 3)})`,
    });

  // ---- histograms

  const SVG = "http://www.w3.org/2000/svg";
  function svg(name, attributes, text = "") {
    const node = document.createElementNS(SVG, name);
    for (const [key, item] of Object.entries(attributes)) node.setAttribute(key, item);
    node.textContent = text;
    return node;
  }

  /** Bars of the share of each side's rows, so that sides of different sizes compare. */
  function histogramNode({ name, edges, a, b }, sides) {
    const [width, height, left, bottom, top] = [300, 110, 34, 16, 8];
    const sums = [a, b].map((counts) => (counts ? counts.reduce((sum, n) => sum + n, 0) : 0));
    const share = (side, number) => (sums[side] ? (side ? b : a)[number] / sums[side] : 0);
    const bins = a.length;
    const highest = Math.max(0.001, ...a.map((_, number) => Math.max(share(0, number), b ? share(1, number) : 0)));
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
    picture.append(svg("title", {}, `histogram of ${name}`));
    const floor = height - bottom;
    const step = (width - left - 6) / bins;
    const barWidth = (step * 0.86) / (b ? 2 : 1);
    for (const part of [0, 1]) {
      const y = floor - part * (floor - top);
      picture.append(svg("line", { x1: left, x2: width, y1: y, y2: y }));
      picture.append(svg("text", { x: left - 4, y: y + 3, "text-anchor": "end" }, `${Math.round(100 * part * highest)}%`));
    }
    for (let number = 0; number < bins; number++) {
      for (const side of b ? [0, 1] : [0]) {
        const tall = (share(side, number) / highest) * (floor - top);
        const bar = svg("rect", {
          class: side || !b ? "bar-b" : "bar-a", x: left + number * step + side * barWidth, y: floor - tall,
          width: barWidth, height: tall,
        });
        const range = `${short(edges[number])} to ${short(edges[number + 1])}`;
        bar.append(svg("title", {}, `${sides ? sides[side] + ", " : ""}${range}: ${count((side ? b : a)[number])} of ${count(sums[side])}`));
        picture.append(bar);
      }
    }
    for (const [number, anchor] of [[0, "start"], [Math.round(bins / 2), "middle"], [bins, "end"]]) {
      picture.append(svg("text", { x: left + number * step, y: height - 3, "text-anchor": anchor }, short(edges[number])));
    }
    const caption = element("figcaption", {}, written("strong", "", name));
    if (b && sides) {
      sides.forEach((side, number) => caption.append(written("span", `legend ${number ? "b" : "a"}`, `${side} (${count(sums[number])})`)));
    }
    return element("figure", {}, caption, picture);
  }

  // ---- a section

  class Table {
    constructor(section) {
      this.section = section;
      const about = section.querySelector("script.about");
      Object.assign(this, JSON.parse(about.textContent)); // name, sides, histograms
      this.state = new URLSearchParams();
    }

    /** Show the section in a state; its rows are read when it is shown for the first time. */
    show(state) {
      this.state = state;
      if (!this.records) {
        this.read();
        this.columns = this.describe();
        this.build();
      }
      this.fillControls();
      this.update();
    }

    read() {
      this.records = [];
      for (const script of this.section.querySelectorAll("script.rows")) {
        for (const row of JSON.parse(script.textContent)) {
          const [kind, a, b] = this.sides ? row : ["row", null, row];
          this.records.push({ index: this.records.length, kind, a, b });
        }
        script.remove(); // its text is held twice otherwise
      }
    }

    describe() {
      const columns = new Map();
      for (const { a, b } of this.records) {
        for (const row of [a, b]) {
          for (const name of row ? Object.keys(row) : []) {
            let column = columns.get(name);
            if (!column) {
              column = { name, numbers: 0, others: 0, longest: 0, choices: new Set(), texts: 0, min: Infinity, max: -Infinity };
              columns.set(name, column);
            }
            const item = row[name];
            if (isEmpty(item)) continue;
            if (typeof item === "number") {
              column.numbers++;
              column.min = Math.min(column.min, item);
              column.max = Math.max(column.max, item);
            } else if (typeof item === "string" || typeof item === "boolean") {
              column.texts++;
              const text = String(item);
              column.longest = Math.max(column.longest, text.length);
              if (column.choices.size <= MAX_CHOICES) column.choices.add(text);
            } else column.others++;
          }
        }
      }
      for (const column of columns.values()) {
        const { numbers, texts, others, choices, longest } = column;
        if (!numbers && !texts && !others) column.type = "empty";
        else if (!texts && !others) column.type = "number";
        else if (others || numbers || longest > 40) column.type = "text";
        else column.type = choices.size <= Math.min(MAX_CHOICES, this.records.length / 2) ? "choice" : "short";
      }
      return [...columns.values()];
    }

    build() {
      if (this.histograms.length) {
        this.section.append(element("div", { className: "histograms" }, ...this.histograms.map((item) => histogramNode(item, this.sides))));
      }
      if (!this.records.length) {
        this.section.append(element("p", { className: "note", textContent: this.sides ? "No row differs." : "No rows." }));
      }
      this.shown = ORDER.flatMap((type) => this.columns.filter((column) => column.type === type));
      this.section.append(this.buildBar(), this.buildFilters());
      const empty = this.columns.filter((column) => column.type === "empty");
      if (empty.length) {
        this.section.append(written("p", "note", `Empty in all rows: ${empty.map((column) => column.name).join(", ")}`));
      }
      this.body = element("tbody");
      this.section.append(element("div", { className: "box", tabIndex: -1 }, element("table", {}, this.buildHead(), this.body)));
      this.body.addEventListener("click", (event) => this.clicked(event));
      this.body.addEventListener("keydown", (event) => this.moved(event));
    }

    buildBar() {
      this.search = element("input", { type: "search", placeholder: "Search all columns (/)", "aria-label": "search all columns" });
      let timer;
      this.search.addEventListener("input", () => {
        clearTimeout(timer);
        timer = setTimeout(() => this.change("q", this.search.value), 150);
      });
      this.counter = element("span", { className: "counter", role: "status" });
      this.pageText = element("span", { className: "counter" });
      const turn = (text, label, by) => {
        const button = element("button", { type: "button", textContent: text, "aria-label": label });
        button.addEventListener("click", () => this.change("page", String(this.page + by), true));
        return button;
      };
      this.previous = turn("\u2190", "previous page", -1);
      this.next = turn("\u2192", "next page", 1);
      this.pager = element("span", { className: "pager" }, this.previous, this.pageText, this.next);
      const bar = element("div", { className: "bar" }, this.search);
      if (this.sides) bar.append(this.buildKinds());
      bar.append(this.counter, this.pager);
      return bar;
    }

    buildKinds() {
      this.kinds = KINDS.map((kind) => {
        const box = element("input", { type: "checkbox", value: kind });
        box.addEventListener("change", () => {
          const on = this.kinds.filter((other) => other.checked).map((other) => other.value);
          this.change("kind", on.length === KINDS.length ? "" : on.join(",") || "none");
        });
        return box;
      });
      const labels = this.kinds.map((box) => {
        const number = this.records.filter((record) => record.kind === box.value).length;
        return element("label", {}, box, element("span", { className: `badge ${box.value}`, textContent: SIGNS[box.value] }), count(number));
      });
      return element("div", { className: "kinds", role: "group", "aria-label": "kinds of change" }, ...labels);
    }

    /** The filters: of a number its least and greatest value, of a column of few values one of them. */
    buildFilters() {
      this.filters = [];
      const list = element("div");
      for (const column of this.shown) {
        const fields = column.type === "number" ? this.rangeFields(column) : column.type === "choice" ? this.choiceField(column) : [];
        if (fields.length) list.append(element("fieldset", {}, written("legend", "", column.name), ...fields));
      }
      const clear = element("button", { type: "button", textContent: "Clear all" });
      clear.addEventListener("click", () => {
        this.state = new URLSearchParams();
        this.fillControls();
        this.update();
        save();
      });
      list.append(clear);
      this.filterTitle = element("summary");
      this.filterBox = element("details", { className: "filters" }, this.filterTitle, list);
      this.filterBox.hidden = !this.filters.length;
      return this.filterBox;
    }

    rangeFields(column) {
      const field = (key, bound, label) => {
        const input = element("input", { type: "number", step: "any", placeholder: `${label} ${short(bound)}`, "aria-label": `${column.name} ${label}` });
        input.addEventListener("input", () => this.change(key, input.value));
        this.filters.push([key, input]);
        return input;
      };
      const fields = [field(`min.${column.name}`, column.min, "min"), field(`max.${column.name}`, column.max, "max")];
      if (this.sides) {
        fields.push(this.pick(`of.${column.name}`, [["", "new value"], ["old", "old value"], ["delta", "new \u2212 old"]], `${column.name}: which`));
      }
      return fields;
    }

    choiceField(column) {
      const choices = [...column.choices].sort(collator.compare).map((text) => [`=${text}`, text]);
      return [this.pick(`is.${column.name}`, [["", "any"], ...choices], column.name)];
    }

    pick(key, choices, label) {
      const options = choices.map(([key, text]) => write(element("option", { value: key }), text));
      const select = element("select", { "aria-label": label }, ...options);
      select.addEventListener("change", () => this.change(key, select.value));
      this.filters.push([key, select]);
      return select;
    }

    buildHead() {
      this.heads = [];
      const row = element("tr", {}, element("th", {}));
      const add = (name, number, keys) => {
        const head = element("th", { className: number ? "number" : "", scope: "col" });
        for (const [key, text, className] of keys) {
          const button = written("button", className, text);
          button.type = "button";
          button.title = `sort by ${text === name ? name : "new \u2212 old of " + name}`;
          button.addEventListener("click", () => this.sortBy(key));
          head.append(button);
          this.heads.push([key, head, button]);
        }
        row.append(head);
      };
      if (this.sides) add("change", false, [["kind", "change", ""]]);
      for (const { name, type } of this.shown) {
        const keys = [[`by.${name}`, name, ""]];
        if (this.sides && type === "number") keys.push([`delta.${name}`, "\u0394", "delta"]);
        add(name, type === "number", keys);
      }
      return element("thead", {}, row);
    }

    sortBy(key) {
      const [now, descending] = [this.state.get("sort"), this.state.get("desc")];
      if (now !== key) {
        this.state.delete("desc");
        this.change("sort", key);
      } else if (!descending) this.change("desc", "1");
      else {
        this.state.delete("desc");
        this.change("sort", "");
      }
    }

    /** Set one thing of the state, and show what follows from it. */
    change(key, text, samePlace = false) {
      if (!samePlace) this.state.delete("page");
      this.set(key, text);
      this.update();
      save();
    }

    set(key, text) {
      if (text) this.state.set(key, text);
      else this.state.delete(key);
    }

    fillControls() {
      this.search.value = this.state.get("q") ?? "";
      const kinds = this.state.get("kind");
      for (const box of this.kinds ?? []) box.checked = kinds === null || kinds.split(",").includes(box.value);
      for (const [key, control] of this.filters) control.value = this.state.get(key) ?? "";
      if (this.filters.some(([, control]) => control.value)) this.filterBox.open = true;
    }

    update() {
      const query = (this.state.get("q") ?? "").toLowerCase();
      const tests = this.tests(query);
      let view = this.records.filter((record) => tests.every((test) => test(record)));
      view = this.sorted(view);
      this.query = query;
      this.view = view;
      const pages = Math.max(1, Math.ceil(view.length / PAGE_SIZE));
      this.page = Math.min(pages, Math.max(1, Number.parseInt(this.state.get("page") ?? "1", 10) || 1));
      this.counter.textContent = `shown ${count(view.length)} of ${count(this.records.length)}`;
      this.pageText.textContent = `page ${count(this.page)} of ${count(pages)}`;
      this.pager.hidden = pages === 1;
      this.previous.disabled = this.page === 1;
      this.next.disabled = this.page === pages;
      const active = this.filters.filter(([key]) => !key.startsWith("of.") && this.state.get(key)).length;
      this.filterTitle.textContent = active ? `Filters (${active} on)` : "Filters";
      const [key, descending] = [this.state.get("sort"), this.state.get("desc")];
      for (const [, head, button] of this.heads) {
        head.removeAttribute("aria-sort");
        button.classList.remove("on");
      }
      for (const [other, head, button] of this.heads) {
        if (other !== key) continue;
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        button.classList.add("on");
      }
      this.render();
    }

    /** Functions of a record that are all true of what is to be shown. */
    tests(query) {
      const tests = [];
      if (query) tests.push((record) => this.haystack(record).includes(query));
      const kinds = this.sides && this.state.get("kind");
      if (kinds) tests.push((record) => kinds.split(",").includes(record.kind));
      for (const { name, type } of this.shown) {
        if (type === "number") {
          const [min, max] = ["min", "max"].map((end) => this.state.get(`${end}.${name}`));
          const get = { old: oldOf, delta: deltaOf }[this.state.get(`of.${name}`)] ?? newOf;
          if (min || max) {
            const [low, high] = [min ? Number(min) : -Infinity, max ? Number(max) : Infinity];
            tests.push((record) => {
              const number = get(record, name);
              return typeof number === "number" && low <= number && number <= high;
            });
          }
        }
        const choice = type === "choice" && this.state.get(`is.${name}`);
        if (choice) tests.push(({ a, b }) => [a, b].some((row) => "=" + String(own(row, name) ?? "") === choice));
      }
      return tests;
    }

    haystack(record) {
      record.text ??= texts([record.a, record.b]).join("\n").toLowerCase();
      return record.text;
    }

    sorted(view) {
      const [, way, name] = /^(kind|by|delta)(?:\.(.*))?$/s.exec(this.state.get("sort") ?? "") ?? [];
      if (!way || (way !== "kind" && !this.shown.some((column) => column.name === name))) return view;
      const get = { kind: (record) => KINDS.indexOf(record.kind), by: newOf, delta: deltaOf }[way];
      const sign = this.state.get("desc") ? -1 : 1;
      const keyed = view.map((record) => {
        const key = get(record, name);
        return { record, key: typeof key === "number" ? key : isEmpty(key) ? undefined : plain(key) };
      });
      keyed.sort((x, y) => { // what has no value comes last, whichever way; numbers before texts
        if (x.key === undefined || y.key === undefined) return (x.key === undefined) - (y.key === undefined);
        const kinds = (typeof x.key === "string") - (typeof y.key === "string");
        return sign * (kinds || (typeof x.key === "number" ? x.key - y.key : collator.compare(x.key, y.key)));
      });
      return keyed.map(({ record }) => record);
    }

    render() {
      lazily.disconnect();
      this.body.replaceChildren();
      const open = new Set((this.state.get("open") ?? "").split(","));
      for (const record of this.view.slice((this.page - 1) * PAGE_SIZE, this.page * PAGE_SIZE)) {
        const row = this.rowNode(record);
        this.body.append(row);
        if (open.has(String(record.index))) this.expand(row);
      }
      if (!this.view.length && this.records.length) {
        const text = "No row passes the filters.";
        this.body.append(element("tr", {}, element("td", { className: "empty", colSpan: this.width(), textContent: text })));
      }
      this.body.closest(".box").scrollTop = 0;
      this.highlight();
    }

    width() {
      return this.shown.length + (this.sides ? 2 : 1);
    }

    rowNode(record) {
      const button = element("button", { type: "button", textContent: "\u25b8", "aria-expanded": "false", "aria-label": `row ${record.index + 1} in full` });
      const row = element("tr", { className: "row" }, element("td", { className: "toggle" }, button));
      row.record = record;
      if (this.sides) {
        const badge = element("span", { className: `badge ${record.kind}`, textContent: SIGNS[record.kind] ?? record.kind });
        row.append(element("td", { className: "short", "data-column": "change" }, badge));
      }
      for (const column of this.shown) row.append(this.cellNode(record, column));
      return row;
    }

    cellNode({ kind, a, b }, { name, type }) {
      const cell = element("td", { className: type === "choice" ? "short" : type, "data-column": name });
      const [old, now] = [own(a, name), own(b, name)];
      if (kind !== "changed") cell.append(this.quickValue(kind === "removed" ? old : now));
      else if (same(old, now)) {
        cell.classList.add("same");
        cell.append(this.quickValue(now));
      } else if (typeof old === "number" && typeof now === "number") {
        cell.append(element("span", { className: "old", textContent: short(old) }), ` \u2192 ${short(now)} `, deltaNode(now - old));
      } else if (isEmpty(old) || isEmpty(now)) {
        const part = (tag, data) => element(tag, {}, this.quickValue(data));
        cell.append(element("span", { className: "clamp" }, part("del", old), " ", part("ins", now)));
      } else {
        const node = element("span", { className: "value clamp", dir: "auto", textContent: preview(plain(now), this.query) });
        node.fill = () => {
          node.replaceChildren();
          writeDiff(node, plain(old), plain(now), false);
          this.highlight();
        };
        cell.append(node);
        lazily.observe(node);
      }
      return cell;
    }

    quickValue(data) {
      if (isEmpty(data)) return element("span", { className: "none", textContent: "\u2013" });
      return value(preview(plain(data), this.query), "clamp");
    }

    clicked(event) {
      const row = event.target.closest("tr.row");
      if (row && !String(getSelection())) this.toggle(row);
    }

    moved(event) {
      const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      let row = event.target.closest("tr.row");
      if (!step || !row) return;
      do row = row[step];
      while (row && !row.record);
      row?.querySelector("button").focus();
      event.preventDefault();
    }

    toggle(row) {
      if (row.detail) {
        row.detail.remove();
        row.detail = null;
        mark(row, false);
      } else this.expand(row);
      const rows = [...this.body.querySelectorAll("tr.row")].filter((other) => other.detail);
      this.set("open", rows.map((other) => other.record.index).join(","));
      save();
      this.highlight();
    }

    expand(row) {
      const { kind, a, b } = row.record;
      const list = element("dl");
      for (const { name } of this.columns) {
        const [old, now] = [own(a, name), own(b, name)];
        if (old === undefined && now === undefined) continue;
        const equal = kind === "changed" && same(old, now);
        const content = kind !== "changed" ? fullValue(kind === "removed" ? old : now) : equal ? fullValue(now) : fullChange(old, now);
        list.append(written("dt", "", name), element("dd", { className: equal ? "same" : "" }, content));
      }
      row.detail = element("tr", { className: "detail" }, element("td", { colSpan: this.width() }, list));
      row.after(row.detail);
      mark(row, true);
    }

    /** Mark what was searched for in what is on the page, where the browser can without a change of the text. */
    highlight() {
      if (!globalThis.CSS?.highlights) return;
      CSS.highlights.delete("found");
      if (!this.query) return;
      const found = new Highlight();
      const walker = document.createTreeWalker(this.body, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const text = walker.currentNode.data.toLowerCase();
        for (let start = text.indexOf(this.query); start >= 0; start = text.indexOf(this.query, start + this.query.length)) {
          if (start + this.query.length > walker.currentNode.length) break; // some letters change length in lower case
          const range = document.createRange();
          range.setStart(walker.currentNode, start);
          range.setEnd(walker.currentNode, start + this.query.length);
          found.add(range);
        }
      }
      CSS.highlights.set("found", found);
    }
  }

  function mark(row, open) {
    const button = row.querySelector("button");
    button.textContent = open ? "\u25be" : "\u25b8";
    button.setAttribute("aria-expanded", String(open));
  }

  const oldOf = ({ a }, name) => own(a, name);
  const newOf = ({ a, b }, name) => own(b ?? a, name); // of a removed row its last value
  const deltaOf = ({ a, b }, name) => {
    const [old, now] = [own(a, name), own(b, name)];
    return typeof old === "number" && typeof now === "number" ? now - old : undefined;
  };

  function texts(data) {
    if (data === null || data === undefined) return [];
    if (typeof data === "object") return Object.values(data).flatMap(texts);
    return [String(data)];
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

  if (tables.length > 1) {
    for (const table of tables) {
      const button = written("button", "", table.name);
      button.type = "button";
      button.addEventListener("click", () => {
        open(table, table.state);
        save();
      });
      nav.append(button);
    }
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
