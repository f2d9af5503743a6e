(function () {
  "use strict";
  var box = document.getElementById("cards");
  var cards = Array.prototype.slice.call(box.children);
  var rows = Array.prototype.slice.call(document.querySelectorAll(".rows tbody tr"));
  var buttons = Array.prototype.slice.call(document.querySelectorAll("button[data-verdict]"));
  var find = document.getElementById("find");
  var sort = document.getElementById("sort");
  var shown = document.getElementById("shown");
  var verdict = "";

  function show() {
    var words = find.value.trim().toLowerCase();
    var number = 0;
    cards.forEach(function (card) {
      var fits = (!verdict || card.dataset.verdict === verdict) &&
        (!words || card.dataset.text.toLowerCase().indexOf(words) >= 0);
      card.hidden = !fits;
      number += fits ? 1 : 0;
    });
    rows.forEach(function (row) {
      row.hidden = !((!verdict || row.dataset.verdict === verdict) &&
        (!words || row.textContent.toLowerCase().indexOf(words) >= 0));
    });
    shown.textContent = number + " of " + cards.length + " cards";
  }

  buttons.forEach(function (button) {
    button.addEventListener("click", function () {
      verdict = button.dataset.verdict;
      buttons.forEach(function (other) { other.classList.toggle("on", other === button); });
      show();
    });
  });
  find.addEventListener("input", show);
  sort.addEventListener("change", function () {
    var by = sort.value;
    cards.sort(function (a, b) { return b.dataset[by] - a.dataset[by]; });
    cards.forEach(function (card) { box.appendChild(card); });
  });
  show();
}());
