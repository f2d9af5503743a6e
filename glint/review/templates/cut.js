// The cut: a line that the reader moves over the histograms; it counts the pairs from there on.
"use strict";
function cutLine(g, values) {  // g: the page (report.js)
  const { byId, all, data } = g;
  const cut = { axis: "", value: 0 };
  let waiting = false;
  const passes = (k) => values[cut.axis][k] !== null && values[cut.axis][k] >= cut.value;

  function move(axis, value) {
    cut.axis = axis;
    cut.value = Math.round(value * 10000);
    all("svg[data-cut]").forEach((svg) => {
      const d = svg.dataset, own = svg.querySelector(".own"), words = own.querySelector("text");
      const on = d.cut === axis ? value : +d.stop;
      const x = +d.left + (d.right - d.left) * (on - d.start) / (d.stop - d.start), late = x > d.width / 2;
      all("line", own).forEach((line) => { line.setAttribute("x1", x); line.setAttribute("x2", x); });
      words.setAttribute("x", x + (late ? -7 : 7));
      words.setAttribute("text-anchor", late ? "end" : "start");
      words.textContent = on < +d.stop ? "your cut " + on.toFixed(2) : "your cut: drag me";
      own.setAttribute("aria-valuenow", on.toFixed(3));
    });
  }
  function recount() {
    let pairs = 0, members = 0, groups = 0, total = 0;
    const root = g.joined((k) => { const yes = passes(k); pairs += yes ? 1 : 0; return yes; });
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
    byId("above").parentNode.hidden = false;
    if (byId("above").checked) { g.filter(); }
  }
  function moved(axis, value) {
    move(axis, value);
    if (waiting) { return; }
    waiting = true;
    requestAnimationFrame(() => { waiting = false; recount(); });
  }
  all("svg[data-cut]").forEach((svg) => {
    const d = svg.dataset;
    function point(event) {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * d.width / box.width;
      const share = Math.min(Math.max((x - d.left) / (d.right - d.left), 0), 1);
      moved(d.cut, +d.start + share * (d.stop - d.start));
    }
    svg.addEventListener("pointerdown", (event) => { event.preventDefault(); svg.setPointerCapture(event.pointerId); point(event); });
    svg.addEventListener("pointermove", (event) => { if (event.buttons & 1) { point(event); } });
    svg.querySelector(".own").addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key];
      if (!by) { return; }
      event.preventDefault();
      const start = cut.axis === d.cut ? cut.value / 10000 : +d.stop;
      moved(d.cut, Math.min(Math.max(start + by, +d.start), +d.stop));
    });
    if (!cut.axis) { move(d.cut, +d.stop); }
  });
  return () => byId("above") && byId("above").checked ? passes : () => true;
}
