// The tabs whose images can be excluded, moved and kept: one is marked, several may be selected.
"use strict";
function imageTabs(g, book) {  // g: the page (report.js); book: decisions.js
  const { byId, all, say } = g;
  const SAID = { exclude: "excluded", keep: "kept", none: "undone" };
  const picked = new Set();
  let tab = null, spot = null, from = null;
  const names = new Map(g.data.label.map((label, i) => [label, g.called(i)]));
  all(".strip[data-to-name]").forEach((one) => { if (one.dataset.to >= 0) { names.set(+one.dataset.to, one.dataset.toName); } });
  const picks = () => tab ? all(".pick", tab) : [];
  const strips = () => all(".strip[data-rows]", tab);
  const rowsOf = (strip) => JSON.parse(strip.dataset.rows);
  const words = (one) => one.what === "move" ? "moved to " + (names.get(one.to) || "label " + one.to) : SAID[one.what];

  function open(section) {
    tab = section.querySelector(".pick") ? section : null;
    picked.clear();
    spot = from = null;
    byId("imagebar").hidden = !tab;
  }
  function paint() {
    if (!tab) { return; }
    picks().forEach((one) => {
      const row = +one.dataset.row;
      one.classList.toggle("at", one === spot);
      one.querySelector("input").checked = picked.has(row);
      one.querySelector(".mark").replaceChildren(...g.told("i" + row, words, ""));
    });
    byId("picked").textContent = picked.size ? picked.size + " selected:" : "";
    const rows = new Set(strips().flatMap(rowsOf)), found = { exclude: 0, move: 0, keep: 0, none: 0 };
    rows.forEach((row) => { found[book.mine("i" + row).what] += 1; });
    const clashes = [...rows].filter((row) => g.clash("i" + row)).length;
    g.progress("image", rows.size - found.none, rows.size, "exclude " + found.exclude + ", move " + found.move + ", keep " + found.keep, clashes);
  }
  function mark(one) {
    if (!one) { return; }
    spot = one;
    paint();
    g.show(one.closest(".strip"));
    g.show(one);
  }
  function select(one, on, range) {
    const list = picks(), here = list.indexOf(one), start = range && from ? list.indexOf(from) : here;
    list.slice(Math.min(here, start), Math.max(here, start) + 1).forEach((it) => { if (on) { picked.add(+it.dataset.row); } else { picked.delete(+it.dataset.row); } });
    spot = one;
    if (!range || !from) { from = one; }
    paint();
  }
  function every(strip) {
    rowsOf(strip).forEach((row) => picked.add(row));
    mark(strip.querySelector(".pick"));
  }

  function typed() {  // the label that is meant, null for none; undefined where it is not known
    const text = byId("to").value.trim();
    if (!text) { return null; }
    if (/^\d+$/.test(text) && +text < g.data.identities) { return +text; }
    const found = [...names].filter((one) => one[1].toLowerCase() === text.toLowerCase());
    if (found.length === 1) { return found[0][0]; }
    say(found.length ? found.length + " identities are called " + text + ": type the label" : "no identity of this report: " + text);
    return undefined;
  }
  function act(what, rows, own) {  // own: the strip whose button was pressed; whether it was done
    if (!rows.length) { say("Select images first."); return false; }
    const wanted = what === "move" && !(own && own.dataset.to >= 0) ? typed() : null, homes = new Map();
    if (wanted === undefined) { return false; }
    strips().forEach((one) => rowsOf(one).forEach((row) => { if (!homes.has(row) || one === own) { homes.set(row, one.dataset); } }));
    const list = rows.map((row) => ["i" + row, what, what !== "move" ? null : wanted === null ? +homes.get(row).to : wanted]);
    if (list.some((one) => one[2] === -1)) {
      say("Move where? Type a label or a name.");
      byId("to").focus();
      return false;
    }
    const stays = what === "move" && list.find((one, i) => one[2] === +homes.get(rows[i]).label);
    if (stays) { say("Image " + stays[0].slice(1) + " is of that identity already."); return false; }
    book.decide(list);
    say((list.length === 1 ? "image " + rows[0] : list.length + " images") + ": " + words({ what: what, to: list[0][2] }));
    if (what === "move") { byId("to").value = ""; }
    picked.clear();
    paint();
    return true;
  }
  function undo() {
    const last = book.undo(true);
    say(last ? "undone: " + (last.length === 1 ? "image " + last[0][0].slice(1) : last.length + " images") : "nothing to undo");
    if (last) { mark(tab.querySelector('.pick[data-row="' + last[0][0].slice(1) + '"]')); }
  }

  function step(by, boxes) {
    const all = picks(), box = (one) => one && one.closest(".exhibit");
    const list = boxes ? all.filter((one, i) => !i || box(one) !== box(all[i - 1])) : all;
    const here = boxes ? list.findIndex((one) => box(one) === box(spot)) : list.indexOf(spot);
    return list[Math.min(Math.max(here + by, 0), list.length - 1)];
  }
  function key(name, shift) {  // whether it means something here
    const way = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[name], along = { ArrowRight: 1, ArrowLeft: -1 }[name];
    const means = { e: "exclude", m: "move", o: "keep" }[name], row = spot && +spot.dataset.row;
    if (!tab) { return false; }
    if (way) { mark(step(way, true)); } else if (along) {
      if (shift && spot && !from) { select(spot, true); }
      const next = step(along);
      if (shift) { select(next, true, true); } else { from = null; }
      mark(next);
    } else if (name === "t") { byId("to").focus(); } else if (name === "u") { undo(); } else if (means && picked.size) { act(means, [...picked]); } else if (!means && !" af".includes(name)) { return false; } else if (!spot) { mark(picks()[0]); } else if (name === "f") { g.enlarge(spot); } else if (!g.fits(spot)) { return true; } else if (name === " ") { select(spot, !picked.has(row)); } else if (name === "a") { every(spot.closest(".strip")); } else if (act(means, [row])) { mark(step(1)); }
    return true;
  }
  byId("to").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && act("move", picked.size ? [...picked] : spot ? [+spot.dataset.row] : [])) { byId("to").blur(); }
  });
  document.addEventListener("click", (event) => {
    const face = event.target.closest(".face"), does = event.target.closest(".exhibit button[data-act], #imagebar button[data-act]");
    if (does) {
      const strip = does.closest(".strip"), own = strip && rowsOf(strip), what = does.dataset.act;
      if (event.detail > 1) { return; }  // the second half of a double click decides nothing
      if (what === "undo") { undo(); } else if (what === "all") { every(strip); } else if (!own) {
        act(what, picked.size ? [...picked] : spot && g.fits(spot) ? [+spot.dataset.row] : []);
      } else { act(what, own.length === 1 ? own : own.filter((row) => picked.has(row)), strip); }
    } else if (face && face.classList.contains("pick") && (event.target.tagName === "INPUT" || event.shiftKey || event.ctrlKey)) {
      select(face, !picked.has(+face.dataset.row), event.shiftKey);
    } else if (face && event.target.tagName === "IMG") { g.enlarge(face); }
  });
  return { open: open, paint: paint, key: key };
}
