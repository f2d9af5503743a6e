// Runs once the page has been painted: 100,000 pairs are parsed behind a page that stands.
"use strict";
document.addEventListener("DOMContentLoaded", () => requestAnimationFrame(() => setTimeout(() => {
  const PAGE = 50, FACES = 6;
  const byId = (id) => document.getElementById(id);
  const all = (what, root) => [...(root || document).querySelectorAll(what)];
  const data = JSON.parse(byId("data").textContent);
  const n = data.a.length;
  const served = location.protocol !== "file:";
  const place = new Map(data.label.map((label, i) => [label, i]));
  const sideA = Int32Array.from(data.a, (label) => place.get(label));
  const sideB = Int32Array.from(data.b, (label) => place.get(label));
  const images = Int32Array.from(sideA, (i, k) => data.images[i] + data.images[sideB[k]]);
  const values = { score: data.score, strength: data.strength, cosine: data.cosine, probability: data.probability, images: images };
  const WORDS = { merge: "merge", mask: "mask", keep: "keep apart" };
  const estimate = byId("audit").textContent;

  let faces = null, texts = null, tab = "pairs", verdict = "";
  let view = new Int32Array(0), at = 0, clashes = new Set();

  function el(tag, cls, text) {
    const made = document.createElement(tag);
    if (cls) { made.className = cls; }
    if (text !== undefined) { made.textContent = text; }
    return made;
  }
  const known = (value) => value !== null;
  const number = (value, digits) => known(value) ? (value / 10000).toFixed(digits) : "-";
  const called = (i) => data.name[i] || data.source[i];
  const title = (k) => called(sideA[k]) + " \u00b7 " + called(sideB[k]);
  function state(text) {
    byId("state").hidden = !text;
    byId("state").textContent = text;
  }
  function say(text) { all(".last").forEach((one) => { one.textContent = text; }); }
  function joined(wanted) {  // union-find over identities of the pairs that `wanted` says
    const head = new Int32Array(data.label.length);
    for (let i = 0; i < head.length; i += 1) { head[i] = i; }
    function root(i) {
      while (head[i] !== i) { head[i] = head[head[i]]; i = head[i]; }
      return i;
    }
    for (let k = 0; k < n; k += 1) {
      if (wanted(k)) { head[root(sideA[k])] = root(sideB[k]); }
    }
    return root;
  }

  // What is on the screen, below the bar that stays.
  const top = () => Math.max(0, ...all(".bar").map((one) => one.getBoundingClientRect().bottom));
  function show(box) {
    const it = box.getBoundingClientRect(), stuck = Math.max(...all(".bar").map((one) => one.offsetHeight));
    if (it.top < top() || it.bottom > innerHeight) { scrollBy(0, it.top - stuck - 8); }
  }
  function fits(box) {  // whether a key may decide it; else it is brought to the screen
    const from = top(), it = box.getBoundingClientRect();
    if (Math.min(it.bottom, innerHeight) - Math.max(it.top, from) >= 0.6 * Math.min(it.height, innerHeight - from)) { return true; }
    show(box);
    say("It was off the screen: look, then press again.");
    return false;
  }
  function progress(kind, own, of, words, clash) {
    byId(kind + "done").max = of || 1;
    byId(kind + "done").value = own;
    byId(kind + "tally").replaceChildren(own + " of " + of + " decided by you", el("span", "more", words ? "; " + words : ""),
      clash ? el("span", "weakest", "; " + clash + " contradictions (apply refuses them)") : "");
  }
  function told(key, words, you) {  // who said what, as pills
    const found = book.spoken(key).map((one) => {
      const row = el("span", "", one.by === book.by() ? you : one.by + ": ");
      row.appendChild(el("b", "pill " + one.what, words(one)));
      return row;
    });
    return clashes.has(key) ? found.concat(el("span", "clash", "contradiction")) : found;
  }

  // Which pairs are shown.
  const orders = {};
  function ordered(by) {
    if (!orders[by]) {
      const value = values[by];
      orders[by] = Int32Array.from({ length: n }, (_, k) => k)
        .sort((p, q) => (known(value[q]) ? value[q] : -1e9) - (known(value[p]) ? value[p] : -1e9) || p - q);
    }
    return orders[by];
  }
  function text(k) {
    if (!texts) { texts = data.label.map((label, i) => (label + " " + data.name[i] + " " + data.source[i]).toLowerCase()); }
    return texts[sideA[k]] + " " + texts[sideB[k]];
  }
  const blind = () => byId("which").value === "audit";
  const shows = { "": () => true, undecided: (k) => !book.decided(k), mine: (k) => book.decided(k), clash: (k) => clashes.has(k) };
  function filter() {
    const words = byId("find").value.trim().toLowerCase(), which = shows[byId("which").value], passes = above();
    view = blind() ? Int32Array.from(data.drawn) : ordered(byId("sort").value)
      .filter((k) => (!verdict || data.verdict[k] === verdict) && passes(k) && which(k));
    if (words) { view = view.filter((k) => text(k).includes(words)); }
    all("#sort, #above, #bulk, button[data-verdict]").forEach((one) => { one.disabled = blind(); });
    at = 0;
    calm();
    draw();
    if (view.length) { show(current()); }
  }

  // Drawing: only the cards of one page are in the document.
  function picture(uri, words) {
    const made = el("img");
    made.src = uri;
    made.alt = words;
    return made;
  }
  function fill(strip, uris, i) {
    strip.classList.toggle("few", uris.length <= 3);
    strip.replaceChildren(...uris.map((uri, j) => {
      const box = el("span", "face");
      box.appendChild(uri ? picture(uri, called(i) + ", image " + (j + 1) + " of " + uris.length) : el("span", "gone", uri === "" ? "no image" : ""));
      return box;
    }));
  }
  function side(i, uris) {
    const box = el("div", "side"), who = el("div", "who"), many = data.images[i];
    who.append(el("b", "", called(i)), el("span", "", "label " + data.label[i] + " \u00b7 source " + data.source[i] + " \u00b7 " + many + (many === 1 ? " image" : " images")));
    box.appendChild(who);
    if (data.thumbs) {
      const strip = el("div", "faces");
      if (uris) { fill(strip, uris, i); } else if (served) {
        fill(strip, new Array(Math.min(FACES, many)).fill(null), i);  // room: cards stay put as faces come
        strip.dataset.side = i;
        sight.observe(strip);
      }
      box.appendChild(strip);
    }
    return box;
  }
  const asked = new Map();
  const sight = new IntersectionObserver((list) => list.forEach((one) => {
    if (!one.isIntersecting) { return; }
    sight.unobserve(one.target);
    const i = +one.target.dataset.side, label = data.label[i];
    if (!asked.has(label)) { asked.set(label, fetch("faces?label=" + label).then((reply) => reply.ok ? reply.json() : { faces: [] })); }
    asked.get(label).then((reply) => fill(one.target, reply.faces, i)).catch(() => {});
  }));

  const late = new IntersectionObserver((list) => list.forEach((one) => {  // what the page had no room for
    if (!one.isIntersecting) { return; }
    late.unobserve(one.target);
    const words = one.target.closest(".strip").querySelector(".who b").textContent;
    fetch("faces?row=" + one.target.parentNode.dataset.row).then((reply) => reply.json())
      .then((reply) => { if (reply.faces[0]) { one.target.replaceWith(picture(reply.faces[0], words)); } }).catch(() => {});
  }));
  if (served) { all(".strip .face[data-row] .gone").forEach((one) => late.observe(one)); }

  function judged(k) {
    const found = document.createDocumentFragment(), facts = el("dl");
    found.append("proposed ", el("span", "pill " + data.verdict[k], WORDS[data.verdict[k]]));
    if (known(data.score[k])) { facts.append(el("dt", "", "score"), el("dd", "score", number(data.score[k], 2))); }
    const need = known(data.need[k]) && data.need[k] <= 10000 ? "merges from cosine " + number(data.need[k], 2) : "";
    const chance = known(data.probability[k]) ? (data.probability[k] / 100).toFixed(1) + " % one person" : "";
    [["cosine of centres", data.cosine], ["of images, mean", data.mean], ["lowest 10 %", data.low]].forEach((one) => {
      facts.append(el("dt", "", one[0]), el("dd", "", number(one[1][k], 3)));
    });
    found.append(el("span", "need", chance + (need && chance ? " \u00b7 " : "") + need), facts);
    return found;
  }
  function card(k) {
    const box = el("article", "card " + (blind() ? "" : data.verdict[k]));
    box.dataset.pair = k;
    const own = faces && faces[k], middle = el("div", "middle"), acts = el("p", "acts");
    [["merge", "m"], ["mask", "s"], ["keep", "x"], ["none", "u"]].forEach((one) => {
      const made = el("button", "", WORDS[one[0]] || "undo");
      made.type = "button";
      made.dataset.act = one[0];
      made.title = "key " + one[1];
      acts.appendChild(made);
    });
    middle.append(acts, el("div", "told"));
    if (!blind()) { middle.appendChild(judged(k)); }
    box.append(side(sideA[k], own && own[0]), middle, side(sideB[k], own && own[1]));
    if (!blind() && data.reasons[data.reason[k]]) { box.appendChild(el("p", "reason", data.reasons[data.reason[k]])); }
    return box;
  }
  function paint(box) {  // what changes on a card
    const k = +box.dataset.pair, own = book.mine(k).what;
    box.classList.toggle("at", k === view[at]);
    all("button[data-act]", box).forEach((one) => {
      if (one.dataset.act === "none") { one.disabled = own === "none"; } else { one.setAttribute("aria-pressed", own === one.dataset.act); }
    });
    box.querySelector(".told").replaceChildren(...told(k, (one) => WORDS[one.what], "you: "));
  }
  const current = () => byId("cards").querySelector('.card[data-pair="' + view[at] + '"]');
  function draw() {
    const first = at - at % PAGE, last = Math.min(first + PAGE, view.length);
    sight.disconnect();
    byId("cards").replaceChildren(...Array.from(view.subarray(first, last), card));
    byId("shown").textContent = view.length ? (first + 1) + " to " + last + " of " + view.length + " pairs" : "no pair";
    byId("back").disabled = first === 0;
    byId("on").disabled = last === view.length;
    refresh();
  }
  function refresh() {
    const count = { merge: 0, mask: 0, keep: 0 };
    for (let k = 0; k < n; k += 1) { count[book.settled(k)] += 1; }
    clashes = book.contradictions();
    const drawn = data.drawn.filter(book.decided).length;
    progress("pair", blind() ? drawn : book.pairs(), blind() ? data.drawn.length : n, blind() ? "" : "as it stands: merge " + count.merge + ", mask " + count.mask + ", keep apart " + count.keep,
      [...clashes].filter((key) => typeof key === "number").length);
    const found = book.audit();
    byId("audit").textContent = /%/.test(found) ? found : estimate + " " + found;
    if (tab === "pairs") { all(".card", byId("cards")).forEach(paint); } else { pictures.paint(); }
  }
  function go(where) {
    if (!view.length) { return; }
    const before = Math.floor(at / PAGE);
    at = Math.min(Math.max(where, 0), view.length - 1);
    if (Math.floor(at / PAGE) === before) { all(".card", byId("cards")).forEach(paint); } else { draw(); }
    show(current());
  }
  function judge(what) {
    book.decide([[view[at], what, null]]);
    say((WORDS[what] || "undone") + ": " + title(view[at]));
  }
  function undo() {
    const last = book.undo(false), where = last ? view.indexOf(last[0][0]) : at;
    say(last ? "undone: " + (last.length === 1 ? title(last[0][0]) : last.length + " pairs") : "nothing to undo");
    go(where >= 0 ? where : at);
  }

  // One image large, and its neighbours.
  let shelf = [], large = 0;
  function enlarge(box) {
    shelf = all(".face img", box.closest(".card, .exhibit, .group"));
    if (!shelf.length) { return; }
    large = Math.max(shelf.indexOf(box.querySelector("img")), 0);
    turn(0);
    byId("large").showModal();
  }
  function turn(by) {
    large = (large + by + shelf.length) % shelf.length;
    byId("large").querySelector("div").replaceChildren(shelf[large].cloneNode());
    byId("large").querySelector("p").textContent = shelf[large].alt;
  }
  all("dialog").forEach((one) => one.addEventListener("click", (event) => {
    const by = event.target.dataset.step;
    if (by) { turn(+by); } else if (event.target === one || event.target.closest(".close, #large img")) { one.close(); }
  }));
  all(".help").forEach((one) => one.addEventListener("click", () => byId("help").showModal()));

  // Bulk: the button asks back before it decides.
  let sure = false;
  function calm() { sure = false; byId("bulk").textContent = "decide"; }
  byId("bulk").addEventListener("click", () => {
    const wanted = byId("bulkverdict").value;
    if (!sure) {
      sure = true;
      byId("bulk").textContent = "really decide " + view.length + " pairs?";
      return;
    }
    calm();
    book.decide(Array.from(view, (k) => [k, wanted === "proposed" ? data.verdict[k] : wanted, null]));
  });
  byId("bulkverdict").addEventListener("change", calm);

  function pairKey(key, repeat) {  // whether it means something here
    const way = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[key], means = { m: "merge", s: "mask", x: "keep" }[key];
    if (way) { go(at + way); } else if (key === "u") { undo(); } else if (!view.length || !means && key !== "f") { return false; } else if (key === "f") { enlarge(current()); } else if (!repeat && fits(current())) {
      judge(means);
      go(at + 1);
    }
    return true;
  }
  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest("input, select, textarea, .own"), key = event.key;
    if (event.ctrlKey || event.metaKey || event.altKey) { return; }
    if (document.querySelector("dialog[open]")) {
      const by = byId("large").open && { ArrowLeft: -1, ArrowRight: 1 }[key];
      if (by) { turn(by); }
      if (key === "Escape" || key === "f") { all("dialog[open]").forEach((one) => one.close()); }
      return;
    }
    if (busy && key === "Escape") { busy.blur(); }
    if (busy && busy.type !== "checkbox" || [" ", "Enter"].includes(key) && event.target.closest("button, summary")) { return; }
    if (key === "?") { byId("help").showModal(); } else if (tab === "pairs" ? !pairKey(key, event.repeat) : event.repeat && "emou ".includes(key) || !pictures.key(key, event.shiftKey)) { return; }
    event.preventDefault();
  });

  function press(list, on) { list.forEach((one) => one.setAttribute("aria-pressed", one === on)); }
  all("button[data-verdict]").forEach((one) => one.addEventListener("click", () => {
    verdict = one.dataset.verdict;
    press(all("button[data-verdict]"), one);
    filter();
  }));
  all("button[data-tab]").forEach((one) => one.addEventListener("click", () => {
    press(all("button[data-tab]"), one);
    tab = one.dataset.tab;
    all("section.tab").forEach((other) => { other.hidden = other.id !== tab; });
    byId("pairbar").hidden = tab !== "pairs";
    pictures.open(byId(tab));
    say("");
    refresh();
  }));
  byId("find").addEventListener("input", filter);
  all("#sort, #which, #above").forEach((one) => one.addEventListener("change", filter));
  byId("back").addEventListener("click", () => go(at - at % PAGE - PAGE));
  byId("on").addEventListener("click", () => go(at - at % PAGE + PAGE));
  document.querySelector(".fold").addEventListener("click", (event) => {
    event.target.setAttribute("aria-expanded", byId("pairbar").classList.toggle("open"));
  });
  byId("cards").addEventListener("click", (event) => {
    const box = event.target.closest(".card"), does = event.target.closest("button[data-act]");
    if (!box || event.detail > 1 && does) { return; }  // the second half of a double click decides nothing
    at = view.indexOf(+box.dataset.pair);
    if (does) { judge(does.dataset.act); } else { refresh(); }
  });

  const page = { data, served, sideA, sideB, byId, all, el, called, state, say, joined, show, fits, progress, told, filter, refresh, enlarge, clash: (key) => clashes.has(key) };
  const book = decisionBook(page), above = cutLine(page, values), pictures = imageTabs(page, book);
  if (data.blind) { byId("which").value = "audit"; }
  book.begin();
  setTimeout(() => {
    faces = JSON.parse(byId("faces").textContent);
    draw();
    document.documentElement.dataset.ready = "yes";
  });
})));
