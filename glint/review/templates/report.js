// Runs once the page has been painted: 100,000 pairs are parsed behind a page that stands.
document.addEventListener("DOMContentLoaded", () => requestAnimationFrame(() => setTimeout(() => {
  "use strict";
  const PAGE = 50, AUDIT = 100, BAND = 1000;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const n = data.a.length;
  const served = location.protocol !== "file:";
  const place = new Map(data.label.map((label, i) => [label, i]));
  const sideA = Int32Array.from(data.a, (label) => place.get(label));
  const sideB = Int32Array.from(data.b, (label) => place.get(label));
  const images = Int32Array.from(sideA, (i, k) => data.images[i] + data.images[sideB[k]]);
  const values = { score: data.score, strength: data.strength, cosine: data.cosine, probability: data.probability, images: images };
  const pairAt = new Map();
  for (let k = 0; k < n; k += 1) { pairAt.set(data.a[k] + ":" + data.b[k], k); }
  const store = "glint:" + data.report.slice(7, 23) + ":";
  const VERDICTS = ["merge", "mask", "keep"];

  let faces = null, texts = null, audit = null;
  let name = "reviewer", verdict = "", cut = null;
  let view = new Int32Array(0), at = 0, seq = 0;
  const said = new Array(n);  // pair -> Map of reviewer -> {verdict, seq}
  const done = [];            // for undo: lists of [pair, verdict before]
  let clashes = new Set(), queue = Promise.resolve();

  function el(tag, cls, text) {
    const made = document.createElement(tag);
    if (cls) { made.className = cls; }
    if (text !== undefined) { made.textContent = text; }
    return made;
  }
  const known = (value) => value !== null;
  const shown = (value, digits) => known(value) ? (value / 10000).toFixed(digits) : "-";

  function state(text) {
    byId("state").hidden = !text;
    byId("state").textContent = text;
  }

  // What was decided.
  function take(k, by, what, number, force) {
    if (!said[k]) { said[k] = new Map(); }
    const held = said[k].get(by);
    if (force || !held || held.seq <= number) { said[k].set(by, { verdict: what, seq: number }); }
    seq = Math.max(seq, number);
  }
  function spoken(k) {
    const found = [];
    if (said[k]) { said[k].forEach((one, by) => { if (one.verdict !== "none") { found.push([by, one.verdict]); } }); }
    return found;
  }
  function mine(k) {
    const one = said[k] && said[k].get(name);
    return one ? one.verdict : "none";
  }
  function settled(k) {
    const found = spoken(k);
    return found.length ? found[0][1] : data.verdict[k];
  }

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

  function contradictions() {
    const found = new Set(), heard = [];
    for (let k = 0; k < n; k += 1) {
      if (!said[k]) { continue; }
      const all = spoken(k);
      if (!all.length) { continue; }
      if (all.some((one) => one[1] !== all[0][1])) { found.add(k); }
      if (all[0][1] !== "merge") { heard.push(k); }
    }
    if (heard.length) {
      const root = joined((k) => settled(k) === "merge");
      heard.forEach((k) => { if (root(sideA[k]) === root(sideB[k])) { found.add(k); } });
    }
    return found;
  }

  function tally() {
    const count = { merge: 0, mask: 0, keep: 0 };
    let decided = 0;
    for (let k = 0; k < n; k += 1) {
      if (said[k] && mine(k) !== "none") { decided += 1; }
      count[settled(k)] += 1;
    }
    clashes = contradictions();
    byId("tally").textContent = decided + " of " + n + " decided by you; as it stands: merge " + count.merge +
      ", mask " + count.mask + ", keep " + count.keep +
      (clashes.size ? "; " + clashes.size + " contradictions (apply refuses them)" : "");
    byId("tally").classList.toggle("weakest", clashes.size > 0);
  }

  function keep(k) {
    const one = said[k].get(name);
    try {
      localStorage.setItem(store + k + ":" + name, one.verdict + " " + one.seq);
    } catch (error) {
      state("This browser keeps no more decisions: download decisions.jsonl before you close the page.");
    }
  }

  function decide(list, back) {  // list of [pair, verdict]
    if (!list.length) { return; }
    const by = name;
    if (!back) { done.push(list.map((one) => [one[0], mine(one[0])])); }
    list.forEach((one) => {
      take(one[0], by, one[1], Math.max(seq + 1, Date.now()));
      if (!served) { keep(one[0]); }
    });
    if (served) { queue = queue.then(() => send(by, list)); }
    tally();
  }

  function send(by, list) {
    return fetch("decide", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ by: by, decisions: list.map((one) => [data.a[one[0]], data.b[one[0]], one[1]]) })
    }).then((reply) => reply.ok ? reply.json() : reply.text().then((text) => { throw new Error(text); }))
      .then((reply) => { reply.decisions.forEach((line) => hear(line, true)); })
      .catch((error) => {
        state("NOT SAVED: " + error.message + ". Reload the page and decide again from the last saved pair.");
      });
  }

  function hear(line, force) {
    const k = pairAt.get(line.a + ":" + line.b);
    if (k !== undefined) { take(k, line.by, line.verdict, line.seq, force); }
  }

  function undo() {
    const last = done.pop();
    if (!last) { return; }
    decide(last, true);
    const where = view.indexOf(last[0][0]);
    go(where >= 0 ? where : at);
  }

  function remember() {  // undo after a reload: what stands by this reviewer, one by one
    done.length = 0;
    const stands = [];
    for (let k = 0; k < n; k += 1) {
      if (said[k] && mine(k) !== "none") { stands.push([said[k].get(name).seq, k]); }
    }
    stands.sort((one, other) => one[0] - other[0]).forEach((one) => done.push([[one[1], "none"]]));
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
  function band(k) { return known(data.score[k]) ? Math.min(Math.max(Math.floor(data.score[k] / BAND), 0), 12) : -1; }
  function sample() {  // the same pairs for every reviewer: drawn by a generator seeded with the report
    if (audit) { return audit; }
    let word = parseInt(data.report.slice(7, 15), 16) || 1;
    const random = () => { word ^= word << 13; word ^= word >>> 17; word ^= word << 5; return (word >>> 0) / 4294967296; };
    const bands = new Map();
    for (let k = 0; k < n; k += 1) {
      if (!bands.has(band(k))) { bands.set(band(k), []); }
      bands.get(band(k)).push(k);
    }
    audit = new Set();
    bands.forEach((list) => {
      for (let i = 0; i < Math.min(AUDIT, list.length); i += 1) {
        const j = i + Math.floor(random() * (list.length - i));
        [list[i], list[j]] = [list[j], list[i]];
        audit.add(list[i]);
      }
    });
    return audit;
  }
  function passes(k) { return known(values[cut.axis][k]) && values[cut.axis][k] >= cut.value; }

  function filter() {
    const words = byId("find").value.trim().toLowerCase(), which = byId("which").value;
    const above = byId("above").checked && cut;
    const chosen = which === "audit" ? sample() : clashes;
    view = ordered(byId("sort").value).filter((k) =>
      (!verdict || data.verdict[k] === verdict) && (!above || passes(k)) &&
      (which === "" || (which === "undecided" ? mine(k) === "none" : which === "mine" ? mine(k) !== "none" : chosen.has(k))) &&
      (!words || text(k).indexOf(words) >= 0));
    at = 0;
    calm();
    draw();
  }

  // Drawing: only the cards of one page stand in the document.
  function image(uri) {
    if (!uri) { return el("span", "gone", "no image"); }
    const made = el("img");
    made.width = made.height = 72;
    made.alt = "";
    made.src = uri;
    return made;
  }
  function side(i, uris) {
    const box = el("div", "side"), who = el("div", "who"), many = data.images[i];
    who.appendChild(el("b", "", data.name[i] || data.source[i]));
    who.appendChild(el("span", "", "label " + data.label[i] + " \u00b7 source " + data.source[i] + " \u00b7 " + many + (many === 1 ? " image" : " images")));
    box.appendChild(who);
    if (data.thumbs) {
      const strip = el("div", "faces");
      if (uris) { uris.forEach((uri) => strip.appendChild(image(uri))); } else if (served) { strip.dataset.label = data.label[i]; sight.observe(strip); }
      box.appendChild(strip);
    }
    return box;
  }
  const asked = new Map();
  const sight = new IntersectionObserver((seen) => seen.forEach((one) => {
    if (!one.isIntersecting) { return; }
    sight.unobserve(one.target);
    const label = one.target.dataset.label;
    if (!asked.has(label)) { asked.set(label, fetch("faces?label=" + label).then((reply) => reply.ok ? reply.json() : { faces: [] })); }
    asked.get(label).then((reply) => reply.faces.forEach((uri) => one.target.appendChild(image(uri)))).catch(() => {});
  }));

  function card(k, where) {
    const box = el("article", "card " + data.verdict[k] + (where === at ? " at" : ""));
    box.dataset.pair = k;
    const own = faces && faces[k];
    const middle = el("div", "middle");
    middle.appendChild(el("span", "pill " + data.verdict[k], data.verdict[k]));
    middle.appendChild(el("b", "score", shown(data.score[k], 2)));
    const need = known(data.need[k]) && data.need[k] <= 10000 ? "merges from cosine " + shown(data.need[k], 2) : "";
    const chance = known(data.probability[k]) ? "one person " + (data.probability[k] / 100).toFixed(1) + " %" : "";
    middle.appendChild(el("span", "need", need + (need && chance ? " \u00b7 " : "") + chance));
    const facts = el("dl");
    [["centres", data.cosine], ["samples", data.mean], ["lowest 10 %", data.low]].forEach((one) => {
      facts.appendChild(el("dt", "", one[0]));
      facts.appendChild(el("dd", "", shown(one[1][k], 3)));
    });
    middle.appendChild(facts);
    const told = el("div", "said");
    spoken(k).forEach((one) => {
      const line = el("span", "", one[0] + ": ");
      line.appendChild(el("b", "pill " + one[1], one[1]));
      told.appendChild(line);
    });
    if (clashes.has(k)) { told.appendChild(el("span", "clash", "contradiction")); }
    middle.appendChild(told);
    box.append(side(sideA[k], own && own[0]), middle, side(sideB[k], own && own[1]));
    if (data.reasons[data.reason[k]]) { box.appendChild(el("p", "reason", data.reasons[data.reason[k]])); }
    return box;
  }

  function draw() {
    const box = byId("cards"), first = at - at % PAGE, last = Math.min(first + PAGE, view.length);
    sight.disconnect();
    const made = document.createDocumentFragment();
    for (let i = first; i < last; i += 1) { made.appendChild(card(view[i], i)); }
    box.replaceChildren(made);
    byId("shown").textContent = view.length ? (first + 1) + " to " + last + " of " + view.length + " pairs" : "no pair";
    byId("back").disabled = first === 0;
    byId("on").disabled = last === view.length;
  }
  function go(where) {
    if (!view.length) { return; }
    at = Math.min(Math.max(where, 0), view.length - 1);
    draw();
    const now = byId("cards").querySelector(".at");
    if (now) { now.scrollIntoView({ block: "center" }); }
  }

  // The cut: a line that the reader moves over a histogram.
  function move(axis, value) {
    cut = { axis: axis, value: Math.round(value * 10000) };
    document.querySelectorAll("svg[data-cut]").forEach((svg) => {
      const d = svg.dataset, own = svg.querySelector(".own");
      const on = d.cut === axis ? value : +d.stop;
      const x = +d.left + (d.right - d.left) * (on - d.start) / (d.stop - d.start);
      own.querySelectorAll("line").forEach((line) => { line.setAttribute("x1", x); line.setAttribute("x2", x); });
      own.setAttribute("aria-valuenow", on.toFixed(3));
    });
  }
  function recount() {
    let pairs = 0, members = 0, groups = 0, total = 0;
    const root = joined((k) => { const yes = passes(k); pairs += yes ? 1 : 0; return yes; });
    const size = new Int32Array(data.label.length);
    for (let i = 0; i < size.length; i += 1) { size[root(i)] += 1; }
    for (let i = 0; i < size.length; i += 1) {
      if (size[root(i)] > 1) { members += 1; total += data.images[i]; }
      if (size[i] > 1) { groups += 1; }
    }
    const split = data.split[cut.axis], kept = split.filter((value) => value >= cut.value).length;
    byId("cut").textContent = "Cut at " + cut.axis + " " + (cut.value / 10000).toFixed(3) + ": " + pairs +
      " pairs; would join " + members + " identities to " + groups + " groups, " + total + " images" +
      (split.length ? "; reaches " + (100 * kept / split.length).toFixed(1) + " % of identities split in two" : "") + ".";
    if (byId("above").checked) { filter(); }
  }
  let waiting = false;
  function moved(axis, value) {
    move(axis, value);
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(() => { waiting = false; recount(); });
    }
  }
  document.querySelectorAll("svg[data-cut]").forEach((svg) => {
    const d = svg.dataset;
    function point(event) {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * d.width / box.width;
      const share = Math.min(Math.max((x - d.left) / (d.right - d.left), 0), 1);
      moved(d.cut, +d.start + share * (d.stop - d.start));
    }
    svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); point(event); });
    svg.addEventListener("pointermove", (event) => { if (event.buttons & 1) { point(event); } });
    svg.querySelector(".own").addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key];
      if (!step) { return; }
      event.preventDefault();
      const from = cut && cut.axis === d.cut ? cut.value / 10000 : +d.stop;
      moved(d.cut, Math.min(Math.max(from + step, +d.start), +d.stop));
    });
  });

  // Calibration.
  function bands() {
    const rows = new Map();
    for (let k = 0; k < n; k += 1) {
      if (!rows.has(band(k))) { rows.set(band(k), [0, 0, 0, 0]); }
      const row = rows.get(band(k));
      row[0] += 1;
      if (sample().has(k)) {
        row[1] += 1;
        if (mine(k) !== "none") { row[2] += 1; row[3] += mine(k) === "merge" ? 1 : 0; }
      }
    }
    const box = byId("bands");
    box.replaceChildren();
    [...rows.keys()].sort((p, q) => q - p).forEach((key) => {
      const row = rows.get(key), line = el("tr"), m = row[2], p = m ? row[3] / m : 0, z = 1.96;
      const middle = (p + z * z / (2 * m)) / (1 + z * z / m);
      const half = z * Math.sqrt(p * (1 - p) / m + z * z / (4 * m * m)) / (1 + z * z / m);
      const from = (key / 10).toFixed(1), upto = ((key + 1) / 10).toFixed(1);
      [key < 0 ? "none" : key === 0 ? "below " + upto : key === 12 ? "from " + from : from + " to " + upto,
        row[0], row[1], m, row[3], m ? (100 * p).toFixed(1) + " %" : "",
        m ? (100 * (middle - half)).toFixed(1) + " to " + (100 * (middle + half)).toFixed(1) + " %" : ""
      ].forEach((value) => line.appendChild(el("td", "", value)));
      box.appendChild(line);
    });
  }

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
    decide(Array.from(view, (k) => [k, wanted === "proposed" ? data.verdict[k] : wanted]));
    draw();
  });
  byId("bulkverdict").addEventListener("change", calm);

  byId("download").addEventListener("click", () => {
    const lines = [];
    for (let k = 0; k < n; k += 1) {
      if (said[k]) {
        said[k].forEach((one, by) => lines.push(JSON.stringify({
          schema: "glint/decision@1", report: data.report, a: data.a[k], b: data.b[k], verdict: one.verdict, by: by, seq: one.seq
        }) + "\n"));
      }
    }
    const link = el("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = "decisions.jsonl";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });

  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest("input, select, textarea, button, .own");
    if (event.ctrlKey || event.metaKey || event.altKey || byId("pairs").hidden) { return; }
    if (busy && busy.tagName !== "BUTTON") { return; }
    const means = { m: "merge", s: "mask", x: "keep" }[event.key];
    if (means && view.length) {
      decide([[view[at], means]]);
      go(at + 1);
    } else if (event.key === "j" || event.key === "ArrowDown") { go(at + 1); } else if (event.key === "k" || event.key === "ArrowUp") { go(at - 1); } else if (event.key === "u") { undo(); } else { return; }
    event.preventDefault();
  });

  document.querySelectorAll("button[data-verdict]").forEach((button) => button.addEventListener("click", () => {
    verdict = button.dataset.verdict;
    document.querySelectorAll("button[data-verdict]").forEach((other) => other.classList.toggle("on", other === button));
    filter();
  }));
  document.querySelectorAll("button[data-tab]").forEach((button) => button.addEventListener("click", () => {
    document.querySelectorAll("button[data-tab]").forEach((other) => other.classList.toggle("on", other === button));
    document.querySelectorAll("section.tab").forEach((tab) => { tab.hidden = tab.id !== button.dataset.tab; });
    if (button.dataset.tab === "calibration") { bands(); }
  }));
  byId("find").addEventListener("input", filter);
  ["sort", "which", "above"].forEach((id) => byId(id).addEventListener("change", filter));
  byId("back").addEventListener("click", () => go(at - at % PAGE - PAGE));
  byId("on").addEventListener("click", () => go(at - at % PAGE + PAGE));
  byId("cards").addEventListener("click", (event) => {
    const box = event.target.closest(".card");
    if (box) { at = view.indexOf(+box.dataset.pair); draw(); }
  });
  byId("name").addEventListener("change", () => {
    name = byId("name").value.trim() || "reviewer";
    byId("name").value = name;
    try { localStorage.setItem("glint:name", name); } catch (error) { /* the name is asked again */ }
    remember();
    tally();
    filter();
  });

  function recall() {
    try {
      name = localStorage.getItem("glint:name") || name;
      for (let i = 0; !served && i < localStorage.length; i += 1) {
        const key = localStorage.key(i);
        if (key.startsWith(store)) {
          const [k, ...by] = key.slice(store.length).split(":"), [what, number] = localStorage.getItem(key).split(" ");
          if (+k < n && VERDICTS.concat("none").includes(what)) { take(+k, by.join(":"), what, +number); }
        }
      }
    } catch (error) {
      state("This browser keeps nothing for this page: download decisions.jsonl before you close it.");
    }
    byId("name").value = name;
  }
  let next = 0;
  function poll(then) {
    fetch("decisions?since=" + next).then((reply) => reply.ok ? reply.json() : Promise.reject(new Error(reply.status)))
      .then((reply) => {
        next = reply.next;
        reply.decisions.forEach((line) => hear(line));
        if (reply.decisions.length) { tally(); if (!then) { draw(); } }
        if (then) { then(); }
      }).catch(() => state("The review server does not answer: start glint dedup-conflicts review again; what was saved stands."));
  }

  recall();
  move("cosine", +((document.querySelector("svg[data-cut=cosine]") || { dataset: { stop: 1 } }).dataset.stop));
  remember();
  tally();
  filter();
  if (served) {
    poll(() => { remember(); filter(); });
    setInterval(() => poll(), 3000);
    byId("invite").hidden = false;
    byId("invite").addEventListener("click", () => {
      fetch("invite", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" })
        .then((reply) => reply.json()).then((reply) => state("Opens once, on this machine: " + reply.link))
        .catch(() => state("The review server does not answer."));
    });
  }
  setTimeout(() => {
    faces = JSON.parse(byId("faces").textContent);
    draw();
    document.documentElement.dataset.ready = "yes";
  });
})));
