"use strict";
// Values of a chart's lines where the pointer is, or where the arrow keys have gone.
const shown = (value) => {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e12)) return value.toExponential(3);
  return size >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
};
const numbers = (text) => (text ? text.split(" ").map(Number) : []);
const nearest = (places, at) => {
  let low = 0, high = places.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (places[middle] < at) low = middle; else high = middle;
  }
  return Math.abs(places[low] - at) <= Math.abs(places[high] - at) ? low : high;
};
for (const plot of document.querySelectorAll(".plot[data-from]")) {
  const from = Number(plot.dataset.from), to = Number(plot.dataset.to);
  const lines = [...plot.querySelectorAll("g[data-x]")].map((group) => ({
    name: group.dataset.name, colour: group.getAttribute("class"), x: numbers(group.dataset.x),
    y: numbers(group.dataset.y), low: numbers(group.dataset.low), high: numbers(group.dataset.high),
  })).filter((line) => line.x.length);
  const cursor = plot.appendChild(document.createElement("div"));
  const tip = plot.appendChild(document.createElement("div"));
  cursor.className = "cursor";
  tip.className = "tip";
  const longest = lines.reduce((one, other) => (other.x.length > one.x.length ? other : one));
  let index = longest.x.length - 1;
  const say = (text, colour) => {
    const row = tip.appendChild(document.createElement("div"));
    if (colour) row.className = colour;
    row.textContent = text;
  };
  const show = (step) => {
    const share = (step - from) / (to - from);
    cursor.style.left = tip.style.left = `${100 * share}%`;
    tip.classList.toggle("left", share > 0.5);
    tip.replaceChildren();
    say(`step ${shown(Math.round(step))}`);
    for (const line of lines) {
      const at = nearest(line.x, step);
      if (Math.abs(line.x[at] - step) > (to - from) / 20) continue;
      const range = line.low.length && line.low[at] !== line.high[at]
        ? ` (${shown(line.low[at])} to ${shown(line.high[at])})` : "";
      say(`${line.name}: ${shown(line.y[at])}${range}`, line.colour);
    }
    plot.classList.add("asked");
  };
  const hide = () => plot.classList.remove("asked");
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const step = from + Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (to - from);
    index = nearest(longest.x, step);
    show(longest.x[index]);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    index = Math.min(longest.x.length - 1, Math.max(0, index + by));
    show(longest.x[index]);
  });
}
