// What was decided on pairs (by their number) and images ("i" + row): kept, sent, heard, withdrawn.
"use strict";
function decisionBook(g) {  // g: the page (report.js)
  const PAIR = "glint/decision@1", IMAGE = "glint/image-decision@1";
  const data = g.data, n = data.a.length;
  const store = "glint:" + data.report.slice(7, 23) + ":";
  const pairAt = new Map();
  for (let k = 0; k < n; k += 1) { pairAt.set(data.a[k] + ":" + data.b[k], k); }
  const said = new Map();     // key -> reviewer -> {what, to, seq}
  const done = [];            // for undo: lists of [key, what, to] as before
  const isImage = (key) => typeof key === "string";
  let name = "reviewer", seq = 0, next = 0, queue = Promise.resolve();

  function take(key, by, what, to, count, force) {
    if (!said.has(key)) { said.set(key, new Map()); }
    const held = said.get(key).get(by);
    if (force || !held || held.seq <= count) { said.get(key).set(by, { what: what, to: to, seq: count }); }
    seq = Math.max(seq, count);
  }
  function spoken(key) {
    const found = [];
    if (said.has(key)) { said.get(key).forEach((one, by) => { if (one.what !== "none") { found.push({ by: by, what: one.what, to: one.to }); } }); }
    return found;
  }
  function mine(key) {
    const one = said.has(key) && said.get(key).get(name);
    return one || { what: "none", to: null, seq: 0 };
  }
  const decided = (key) => mine(key).what !== "none";
  function settled(k) {
    const found = said.size ? spoken(k) : [];
    return found.length ? found[0].what : data.verdict[k];
  }

  function contradictions() {
    const found = new Set(), heard = [];
    said.forEach((_, key) => {
      const list = spoken(key);
      if (list.some((one) => one.what !== list[0].what || one.to !== list[0].to)) { found.add(key); }
      if (list.length && !isImage(key) && list[0].what !== "merge") { heard.push(key); }
    });
    if (heard.length) {
      const root = g.joined((k) => settled(k) === "merge");
      heard.forEach((k) => { if (root(g.sideA[k]) === root(g.sideB[k])) { found.add(k); } });
    }
    return found;
  }

  // The largest share of which `wrong` of `drawn` or fewer are seen once in twenty (Clopper, Pearson).
  function atMost(wrong, drawn) {
    let low = wrong / drawn, high = 1;
    for (let i = 0; i < 60 && wrong < drawn; i += 1) {
      const p = (low + high) / 2;
      let term = drawn * Math.log1p(-p), sum = Math.exp(term);
      for (let x = 1; x <= wrong; x += 1) {
        term += Math.log((drawn - x + 1) / x) + Math.log(p) - Math.log1p(-p);
        sum += Math.exp(term);
      }
      if (sum > 0.05) { low = p; } else { high = p; }
    }
    return high;
  }
  function audit() {  // in words; empty where nothing drawn was decided
    let count = 0, wrong = 0, unsure = 0;
    data.drawn.forEach((k) => {
      const list = spoken(k).map((one) => one.what);
      count += list.length ? 1 : 0;
      if (list.includes("keep")) { wrong += 1; } else if (list.includes("mask")) { unsure += 1; }
    });
    const drawn = data.drawn.length, whole = drawn === data.merges;
    if (count < drawn || !drawn) { return count ? "Audit: " + count + " of " + drawn + " drawn pairs decided." : ""; }
    const share = whole ? (wrong + unsure) / drawn : atMost(wrong + unsure, drawn);
    return "Audit: of " + drawn + " drawn, " + wrong + " wrong" + (unsure ? ", " + unsure + " unsure (counted as wrong)" : "") + ": " +
      (whole ? "" : "at most ") + (100 * share).toFixed(1) + " % of the merges are wrong" + (whole ? " (all were reviewed)." : ", at 95 % confidence.");
  }

  function keep(key) {
    const one = mine(key);
    try {
      localStorage.setItem(store + key + ":" + name, one.what + " " + one.seq + (one.to === null ? "" : " " + one.to));
    } catch (error) {
      g.state("This browser keeps no more decisions: download decisions.jsonl before you close the page.");
    }
  }
  function line(key, one) {  // as in decisions.jsonl
    if (!isImage(key)) { return { a: data.a[key], b: data.b[key], verdict: one.what }; }
    return Object.assign({ image: +key.slice(1), action: one.what }, one.to === null ? {} : { to: one.to });
  }
  function decide(list, back) {  // list of [key, what, to]
    if (!list.length) { return; }
    const by = name;
    if (!back) { done.push(list.map((one) => [one[0], mine(one[0]).what, mine(one[0]).to])); }
    list.forEach((one) => {
      take(one[0], by, one[1], one[2], Math.max(seq + 1, Date.now()));
      if (!g.served) { keep(one[0]); }
    });
    if (g.served) { queue = queue.then(() => send(by, list)); }
    g.refresh();
  }
  function undo(image) {  // the last decision on an image, or on a pair; null for none
    let i = done.length - 1;
    while (i >= 0 && isImage(done[i][0][0]) !== image) { i -= 1; }
    if (i < 0) { return null; }
    const [last] = done.splice(i, 1);
    decide(last, true);
    return last;
  }
  function remember() {  // undo after a reload: what stands by this reviewer, one by one
    done.length = 0;
    [...said.keys()].filter(decided).sort((p, q) => mine(p).seq - mine(q).seq).forEach((key) => done.push([[key, "none", null]]));
  }

  function post(path, body) {
    return fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })
      .then((reply) => reply.ok ? reply.json() : reply.text().then((text) => { throw new Error(text); }));
  }
  function send(by, list) {
    const wanted = list.map((one) => isImage(one[0]) ? line(one[0], { what: one[1], to: one[2] }) : [data.a[one[0]], data.b[one[0]], one[1]]);
    return post("decide", { by: by, decisions: wanted })
      .then((reply) => { reply.decisions.forEach((one) => hear(one, true)); })
      .catch((error) => {
        g.state("NOT SAVED: " + error.message + ". Reload the page and decide again from the last saved decision.");
      });
  }
  function hear(one, force) {
    const image = one.schema === IMAGE, key = image ? "i" + one.image : pairAt.get(one.a + ":" + one.b);
    if (key !== undefined) { take(key, one.by, image ? one.action : one.verdict, one.to === undefined ? null : one.to, one.seq, force); }
  }
  function poll(then) {
    fetch("decisions?since=" + next).then((reply) => reply.ok ? reply.json() : Promise.reject(new Error(reply.status)))
      .then((reply) => {
        next = reply.next;
        reply.decisions.forEach((one) => hear(one));
        if (then) { then(); } else if (reply.decisions.length) { g.refresh(); }
      }).catch(() => g.state("The review server does not answer: start glint dedup-conflicts review again; what was saved stands."));
  }
  function recall() {
    try {
      name = localStorage.getItem("glint:name") || name;
      for (let i = 0; !g.served && i < localStorage.length; i += 1) {
        const held = localStorage.key(i);
        if (!held.startsWith(store)) { continue; }
        const [key, ...by] = held.slice(store.length).split(":"), [what, count, to] = localStorage.getItem(held).split(" ");
        if (/^i\d+$/.test(key) || +key < n) {
          take(key[0] === "i" ? key : +key, by.join(":"), what, to === undefined ? null : +to, +count);
        }
      }
    } catch (error) {
      g.state("This browser keeps nothing for this page: download decisions.jsonl before you close it.");
    }
    g.byId("name").value = name;
  }

  g.byId("download").addEventListener("click", () => {
    const lines = [];
    said.forEach((by, key) => by.forEach((one, who) => lines.push(JSON.stringify(Object.assign(
      { schema: isImage(key) ? IMAGE : PAIR, report: data.report }, line(key, one), { by: who, seq: one.seq })) + "\n")));
    const link = g.el("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = "decisions.jsonl";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
  g.byId("name").addEventListener("change", () => {
    name = g.byId("name").value.trim() || "reviewer";
    g.byId("name").value = name;
    try { localStorage.setItem("glint:name", name); } catch (error) { /* the name is asked again */ }
    remember();
    g.filter();
  });
  function begin() {
    recall();
    remember();
    g.filter();
    if (!g.served) { return; }
    poll(() => { remember(); g.filter(); });
    setInterval(() => poll(), 3000);
    g.byId("invite").hidden = false;
    g.byId("invite").addEventListener("click", () => {
      post("invite", {}).then((reply) => g.state("Opens once, on this machine: " + reply.link))
        .catch(() => g.state("The review server does not answer."));
    });
  }
  return {
    begin: begin, decide: decide, undo: undo, decided: decided, mine: mine, spoken: spoken, settled: settled,
    contradictions: contradictions, audit: audit, by: () => name, pairs: () => [...said.keys()].filter((key) => !isImage(key) && decided(key)).length
  };
}
