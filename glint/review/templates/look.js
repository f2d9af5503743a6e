"use strict";
// The page of `glint look`. Served, it asks for a page of rows at a time; alone, it has a sample.
const held = JSON.parse(document.getElementById("data").textContent);
const meta = held.meta, one = (id) => document.getElementById(id);
const COUNT = { identities: 20, images: 96, quarantine: 50 };
const state = { view: "identities", who: null, name: "", start: 0, total: 0 };
const wish = { identities: { sort: "images", down: true }, images: { sort: meta.columns[0] || "", down: false }, one: { sort: "", down: false } };
const wished = () => (state.who !== null ? wish.one : wish[state.view]);

const element = (tag, words, className) => {
  const made = document.createElement(tag);
  if (words !== undefined) made.textContent = words;
  if (className) made.className = className;
  return made;
};

const value = (image, name) => {
  const found = image.values[meta.columns.indexOf(name)];
  return found === null || found === undefined ? NaN : found;
};

const ordered = (items, key, down) => {
  const sound = items.filter((item) => !Number.isNaN(key(item)));
  sound.sort((a, b) => key(a) - key(b));
  return down ? sound.reverse() : sound;
};

// The same questions that the server answers, of the sample that this page holds.
const local = {
  identities(asked) {
    const low = (item) => Math.min(...item.faces.map((face) => value(face, asked.sort)).filter((v) => !Number.isNaN(v)));
    const key = asked.sort === "images" ? (item) => item.images : low;
    const text = asked.text.toLowerCase();
    const some = held.identities.filter((item) => `${item.name}\n${item.label}`.toLowerCase().includes(text));
    return ordered(some, key, asked.down);
  },
  images(asked) {
    let some = held.images;
    if (asked.who !== null) some = some.filter((image) => image.who === asked.who);
    if (asked.column) some = some.filter((image) => {
      const v = value(image, asked.column);
      return (asked.low === "" || v >= Number(asked.low)) && (asked.high === "" || v <= Number(asked.high)) && !Number.isNaN(v);
    });
    const sort = asked.sort || (asked.who !== null && meta.columns.includes("likeness") ? "likeness" : "");
    return sort ? ordered(some, (image) => value(image, sort), asked.down) : asked.down ? [...some].reverse() : some;
  },
  quarantine(asked) {
    return held.rejected.filter((item) => !asked.text || item.reason === asked.text);
  },
};

const ask = async (path, asked) => {
  if (!meta.served) {
    const all = local[path](asked);
    return { total: all.length, items: all.slice(asked.start, asked.start + asked.count) };
  }
  const words = new URLSearchParams({ sort: asked.sort, down: asked.down ? "1" : "0", text: asked.text, from: asked.start, count: asked.count });
  if (path === "images") {
    words.set("column", asked.column);
    words.set("low", asked.low);
    words.set("high", asked.high);
    if (asked.who !== null) words.set("who", asked.who);
  }
  const answer = await fetch(`/${path}?${words}`);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
};

const address = (image) => (meta.served ? `/image?row=${image.row}` : held.faces[image.row]);

const enlarge = (image, identity) => {
  const dialog = one("large"), facts = dialog.querySelector("dl"), shown = dialog.querySelector("img");
  shown.src = address(image) || "";
  shown.alt = `image ${image.key}`;
  facts.replaceChildren();
  const told = [["key", image.key], ["source", image.source], ["identity", image.who < 0 ? "left out" : identity || image.who]];
  for (const name of meta.columns) told.push([name, Number.isNaN(value(image, name)) ? "none" : value(image, name)]);
  for (const [name, words] of told) facts.append(element("dt", name), element("dd", words));
  dialog.showModal();
};

const tile = (image, words, identity) => {
  const made = element("button", undefined, "tile"), url = address(image);
  if (url) {
    const shown = element("img");
    shown.loading = "lazy";
    shown.src = url;
    shown.alt = `image ${image.key} of ${identity || "identity " + image.who}`;
    shown.addEventListener("error", () => shown.replaceWith(element("span", "cannot be read", "gone")));
    made.append(shown);
  } else made.append(element("span", "not in this sample", "gone"));
  if (words) made.append(element("span", words));
  made.title = image.source;
  made.addEventListener("click", () => enlarge(image, identity));
  return made;
};

const counted = (count, single, several) => `${count.toLocaleString("en")} ${count === 1 ? single : several}`;

const said = (image, name) => (name && meta.columns.includes(name) ? `${name} ${value(image, name)}` : image.key);

const draw = {
  identities(items, asked) {
    return items.map((item) => {
      const card = element("section", undefined, "person"), head = element("div", undefined, "head"), sheet = element("div", undefined, "sheet");
      const name = item.name || item.label, open = element("button", "All images");
      open.addEventListener("click", () => go({ view: "images", who: item.who, name, start: 0 }));
      head.append(element("b", name), element("span", item.name && item.name !== item.label ? item.label : ""), element("span", counted(item.images, "image", "images")), open);
      sheet.append(...item.faces.map((face) => tile(face, said(face, asked.sort), name)));
      card.append(head, sheet);
      return card;
    });
  },
  images(items, asked) {
    const sheet = element("div", undefined, "sheet");
    sheet.append(...items.map((image) => tile(image, said(image, asked.sort), state.name)));
    return [sheet];
  },
  quarantine(items) {
    return items.map((item) => {
      const card = element("section", undefined, "record"), words = element("div"), reason = one("reason").value;
      const url = meta.served ? meta.photographs && `/photograph?at=${item.at}&text=${encodeURIComponent(reason)}` : held.photos[item.at];
      const shown = element("div", url ? undefined : "no picture kept", "plain");
      if (url) {
        const image = element("img");
        image.loading = "lazy";
        image.src = url;
        image.alt = `what was rejected: ${item.source}`;
        image.addEventListener("error", () => image.replaceWith("cannot be shown"));
        shown.append(image);
      }
      const about = element("p", undefined);
      about.append(element("b", item.reason), item.note ? `: ${item.note}` : "");
      words.append(about, element("p", item.source || "", "plain"), element("p", `${item.size ?? "?"} bytes, label ${item.source_label ?? ""}`, "plain"));
      card.append(shown, words);
      return card;
    });
  },
};

let turn = 0;
const show = async () => {
  const mine = ++turn, view = state.view, sorting = wished() || { sort: "", down: false };
  const asked = {
    sort: sorting.sort,
    down: sorting.down, text: view === "identities" ? one("text").value : view === "quarantine" ? one("reason").value : "",
    column: one("column").value, low: one("low").value, high: one("high").value, who: state.who, start: state.start, count: COUNT[view],
  };
  let got;
  try {
    got = await ask(view, asked);
  } catch (error) {
    got = { total: 0, items: [] };
    one("none").textContent = `no answer: ${error.message}`;
  }
  if (mine !== turn) return; // another question was asked meanwhile
  state.total = got.total;
  one("list").replaceChildren(...(got.items.length ? draw[view](got.items, asked) : []));
  one("none").hidden = got.items.length > 0;
  if (!got.items.length && !one("none").textContent) one("none").textContent = "Nothing fits.";
  const nouns = { identities: ["identity", "identities"], images: ["image", "images"], quarantine: ["rejected record", "rejected records"] };
  const of = (state.who === null ? "" : ` of ${state.name}`) + (meta.served ? "" : " in this sample");
  one("what").textContent = counted(got.total, ...nouns[view]) + of;
  one("at").textContent = got.total ? `${(state.start + 1).toLocaleString("en")} to ${(state.start + got.items.length).toLocaleString("en")}` : "";
  one("before").disabled = state.start === 0;
  one("after").disabled = state.start + got.items.length >= got.total;
  one("back").hidden = state.who === null;
  document.body.dataset.ready = String(mine);
};

const options = (select, names) => select.replaceChildren(...names.map(([name, words]) => {
  const made = element("option", words);
  made.value = name;
  return made;
}));

const go = (change) => {
  const other = change.view && (change.view !== state.view || change.who !== state.who);
  Object.assign(state, change);
  if (other) {
    for (const label of document.querySelectorAll("[data-for]")) label.hidden = !label.dataset.for.includes(state.view);
    for (const tab of document.querySelectorAll("[data-view]")) tab.setAttribute("aria-pressed", String(tab.dataset.view === state.view));
    const columns = meta.columns.map((name) => [name, state.view === "identities" ? `lowest ${name}` : name]);
    const first = state.view === "identities" ? [["images", "number of images"]] : state.who === null ? [["", "order of the shards"]] : [["", "outliers first"]];
    options(one("sort"), [...first, ...columns]);
    if (state.who !== null) wish.one = { sort: "", down: false };
    const sorting = wished();
    if (sorting) {
      one("sort").value = sorting.sort;
      one("down").checked = sorting.down;
    }
    one("none").textContent = "";
  }
  window.scrollTo(0, 0);
  show();
};

const page = (by) => {
  const start = state.start + by * COUNT[state.view];
  if (start >= 0 && start < state.total) go({ start });
};

options(one("column"), [["", "all images"], ...meta.columns.map((name) => [name, name])]);
options(one("reason"), [["", "all"], ...Object.entries(meta.reasons).map(([name, count]) => [name, `${name} (${count})`])]);
for (const tab of document.querySelectorAll("[data-view]")) tab.addEventListener("click", () => go({ view: tab.dataset.view, who: null, name: "", start: 0 }));
one("sort").addEventListener("change", () => { wished().sort = one("sort").value; go({ start: 0 }); });
one("down").addEventListener("change", () => { wished().down = one("down").checked; go({ start: 0 }); });
for (const id of ["text", "low", "high"]) one(id).addEventListener("input", () => go({ start: 0 }));
for (const id of ["column", "reason"]) one(id).addEventListener("change", () => go({ start: 0 }));
one("before").addEventListener("click", () => page(-1));
one("after").addEventListener("click", () => page(1));
one("back").addEventListener("click", () => go({ view: "identities", who: null, name: "", start: 0 }));
one("large").querySelector("button").addEventListener("click", () => one("large").close());
one("large").querySelector("img").addEventListener("click", () => one("large").close());
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey || one("large").open) return;
  if (event.key === "j") page(1);
  if (event.key === "k") page(-1);
  if (event.key === "Escape" && state.who !== null) one("back").click();
  const tab = document.querySelectorAll("[data-view]")[Number(event.key) - 1];
  if (tab) tab.click();
});
state.view = "";
go({ view: "identities", who: null });
