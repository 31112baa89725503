// The page of `feedback-transformer inspect`. `findings` is what page.py wrote; indices count from 0, what is shown from 1.
"use strict";
(() => {
  const findings = JSON.parse(document.getElementById("findings").textContent);
  const { labels, words, before, number, depth, heads, window: reach, bits, guesses, targets, mix, norms, shares } = findings;
  const count = labels.length;
  const attention = decode(findings.attention);
  const RECENT = 24; // tokens in the plot of all heads
  const FONT = { family: getComputedStyle(document.body).fontFamily, size: 12, color: "#1d2530" };
  const CONFIG = { displayModeBar: false, responsive: true };
  const select = (id) => document.getElementById(id);
  const layerSelect = select("layer"), headSelect = select("head"), colourSelect = select("colour");
  const passage = select("passage");
  let chosen = count - 1, held = false;

  // Numbers of 16 bits, 65535 for 1, in base 64.
  function decode(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true) / 65535);
  }

  // What a head at a token takes from the token so many places before.
  function taken(layer, head, token, distance) {
    return attention[((layer * heads + head) * count + token) * reach + distance];
  }

  // The same, as the mean of what is chosen.
  function chosenTaken(token, distance) {
    const layers = choices(layerSelect, depth), all = choices(headSelect, heads);
    let sum = 0;
    for (const layer of layers) for (const head of all) sum += taken(layer, head, token, distance);
    return sum / (layers.length * all.length);
  }

  function choices(from, length) {
    return from.value === "all" ? Array.from({ length }, (_, i) => i) : [Number(from.value)];
  }

  function chosenName() {
    const layer = layerSelect.value === "all" ? "all layers" : `layer ${Number(layerSelect.value) + 1}`;
    const head = headSelect.value === "all" ? "all heads" : `head ${Number(headSelect.value) + 1}`;
    return `${layer}, ${head}`;
  }

  // The token at a place; places below 0 are before what is shown.
  function labelAt(place) {
    return place >= 0 ? labels[place] : before[before.length + place] ?? "(start)";
  }

  function escaped(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  function percent(share) {
    return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
  }

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function item(label, text) {
    const made = element("span", undefined, "item");
    made.append(element("code", label), ` ${text}`);
    return made;
  }

  function fillSelect(target, noun, length) {
    target.append(new Option(`all ${noun}s`, "all"));
    for (let i = 0; i < length; i++) target.append(new Option(String(i + 1), String(i)));
  }

  function writePassage() {
    passage.classList.toggle("spaced", !findings.predicts_next);
    labels.forEach((label, i) => {
      const token = element("span", undefined, "token");
      token.dataset.place = i;
      const parts = words[i].split("\n");
      parts.forEach((part, j) => {
        if (j) token.append(element("span", "↵", "break"), "\n");
        token.append(part);
      });
      passage.append(token);
    });
  }

  function colourPassage() {
    const byBits = colourSelect.value === "bits";
    const most = Math.max(1, ...bits.filter((value) => value !== null));
    for (const token of passage.children) {
      const place = Number(token.dataset.place), distance = chosen - place;
      let share = 0;
      if (byBits) share = (bits[place] ?? 0) / most;
      else if (distance >= 0 && distance < reach) share = Math.sqrt(chosenTaken(chosen, distance));
      token.style.backgroundColor = share > 0.004 ? `rgba(var(${byBits ? "--bits" : "--accent"}), ${share})` : "";
      token.classList.toggle("chosen", place === chosen);
      token.classList.toggle("after", !byBits && place > chosen);
      token.title = bits[place] === null ? "" : `${bits[place].toFixed(2)} bits`;
    }
  }

  function writeFacts() {
    const box = select("facts");
    const heading = element("h2");
    heading.append(`token ${number + chosen} `, element("code", labels[chosen]));
    const cost = element("p");
    if (bits[chosen] !== null) {
      cost.append(findings.predicts_next ? "It took " : "Its label ");
      if (!findings.predicts_next) cost.append(element("code", targets[chosen]), " took ");
      cost.append(`${bits[chosen].toFixed(2)} bits.`);
    }
    cost.append(findings.predicts_next ? " Expected next: " : " Predicted: ");
    for (const [label, chance] of guesses[chosen]) cost.append(item(label, percent(chance)), " ");
    const reads = element("p", `${chosenName()}: `, "reads");
    const found = Array.from({ length: reach }, (_, distance) => [chosenTaken(chosen, distance), distance]);
    found.sort((a, b) => b[0] - a[0]);
    for (const [share, distance] of found.slice(0, 5)) {
      if (share > 0.0005) reads.append(item(labelAt(chosen - distance), `${distance} back, ${percent(share)}`), " ");
    }
    box.replaceChildren(heading, cost, reads);
  }

  function layout(title, height, more) {
    return {
      title: { text: title, font: { ...FONT, size: 14 }, x: 0, xref: "paper", xanchor: "left" },
      height, font: FONT, showlegend: false, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
      margin: { l: 52, r: 12, t: 38, b: 40 }, ...more,
    };
  }

  function drawHeads() {
    const distances = Array.from({ length: Math.min(RECENT, reach) }, (_, i) => Math.min(RECENT, reach) - 1 - i);
    const rows = [], names = [];
    for (let layer = 0; layer < depth; layer++) {
      for (let head = 0; head < heads; head++) {
        rows.push(distances.map((distance) => taken(layer, head, chosen, distance)));
        names.push(`${layer + 1}.${head + 1}`);
      }
    }
    const text = distances.map((distance) => escaped(labelAt(chosen - distance)));
    Plotly.react("heads", [{
      type: "heatmap", z: rows, x: distances.map((distance) => -distance), y: names, zmin: 0, zmax: 1, text: rows.map(() => text),
      colorscale: [[0, "#fff"], [0.05, "#fbd9e5"], [0.3, "#ee7fa8"], [1, "#8f0f3f"]], showscale: false, xgap: 1, ygap: 1,
      hovertemplate: "layer.head %{y} reads “%{text}”, %{x}: %{z:.3f}<extra></extra>",
    }], layout("What each layer.head reads of the newest tokens (click to choose it)", 90 + 17 * rows.length, {
      xaxis: { tickvals: distances.map((distance) => -distance), ticktext: text, tickangle: 0, fixedrange: true, showgrid: false, zeroline: false },
      yaxis: { type: "category", autorange: "reversed", fixedrange: true, showgrid: false, dtick: 1 },
    }), CONFIG);
  }

  function drawDistance() {
    const distances = Array.from({ length: reach - 1 }, (_, i) => i + 1);
    const powers = Array.from({ length: 31 }, (_, i) => 2 ** i);
    Plotly.react("distance", [{
      type: "scatter", mode: "lines", line: { color: "rgb(216, 27, 96)", width: 1.6, shape: "hvh" }, fill: "tozeroy",
      fillcolor: "rgba(216, 27, 96, 0.15)", x: distances, y: distances.map((distance) => chosenTaken(chosen, distance)),
      text: distances.map((distance) => escaped(labelAt(chosen - distance))),
      hovertemplate: "“%{text}”, %{x} back: %{y:.4f}<extra></extra>",
    }], layout(`How far back it reads: ${chosenName()}`, 210, {
      xaxis: { type: "log", title: { text: "tokens back" }, fixedrange: true, tickvals: powers, gridcolor: "#eef1f4" },
      yaxis: { rangemode: "tozero", fixedrange: true, gridcolor: "#eef1f4", title: { text: "attention" } },
    }), CONFIG);
  }

  function drawMix() {
    const names = mix.map((_, layer) => (layer ? String(layer) : "emb."));
    const bar = (name, values, color, more) => ({
      type: "bar", name, x: names, y: values, marker: { color }, hovertemplate: `${name} of %{x}: %{y:.3f}<extra></extra>`, ...more,
    });
    Plotly.react("mix", [
      bar("weight in the mix", mix, "#b9c3d0"),
      bar("share of the mix", shares.map((layer) => layer[chosen]), "#1e64c8"),
      bar("norm", norms.map((layer) => layer[chosen]), "#3f9d6b", { xaxis: "x2", yaxis: "y2", showlegend: false }),
    ], layout("What the memory stores of it: the mix of its states, by layer", 230, {
      showlegend: true, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, barmode: "group", bargap: 0.25,
      margin: { l: 52, r: 12, t: 62, b: 40 },
      xaxis: { domain: [0, 0.56], type: "category", fixedrange: true, title: { text: "layer" } },
      yaxis: { fixedrange: true, gridcolor: "#eef1f4" },
      xaxis2: { domain: [0.66, 1], type: "category", fixedrange: true, title: { text: "layer" }, anchor: "y2" },
      yaxis2: { fixedrange: true, gridcolor: "#eef1f4", anchor: "x2", title: { text: "norm" }, rangemode: "tozero" },
    }), CONFIG);
  }

  function drawBits() {
    const noun = findings.predicts_next ? "token" : "label";
    Plotly.react("bits", [{
      type: "bar", x: bits.map((_, i) => number + i), y: bits, text: labels.map(escaped), textposition: "none",
      marker: { color: bits.map((_, i) => (i === chosen ? "#1d2530" : "rgba(30, 100, 200, 0.55)")) },
      hovertemplate: "“%{text}”: %{y:.2f} bits<extra></extra>",
    }], layout(`Bits of each ${noun}: ${findings.mean_bits} in the mean`, 190, {
      bargap: 0, xaxis: { title: { text: "token" }, fixedrange: true }, yaxis: { fixedrange: true, gridcolor: "#eef1f4" },
    }), CONFIG);
  }

  function draw() {
    colourPassage();
    writeFacts();
    drawHeads();
    drawDistance();
    drawMix();
    drawBits();
  }

  function choose(place) {
    chosen = Math.max(0, Math.min(count - 1, place));
    draw();
  }

  function placeOf(event) {
    const token = event.target.closest(".token");
    return token ? Number(token.dataset.place) : null;
  }

  function listen() {
    passage.addEventListener("pointerover", (event) => {
      const place = placeOf(event);
      if (!held && place !== null) choose(place);
    });
    passage.addEventListener("click", (event) => {
      const place = placeOf(event);
      if (place === null) return;
      held = !(held && place === chosen);
      choose(place);
    });
    document.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || event.target instanceof HTMLSelectElement) return;
      event.preventDefault();
      held = true;
      choose(chosen + step);
    });
    for (const control of [layerSelect, headSelect, colourSelect]) control.addEventListener("change", draw);
    select("heads").on("plotly_click", ({ points: [{ y }] }) => {
      const [layer, head] = y.split(".");
      layerSelect.value = String(layer - 1);
      headSelect.value = String(head - 1);
      draw();
    });
    select("bits").on("plotly_click", ({ points: [{ pointNumber }] }) => {
      held = true;
      choose(pointNumber);
    });
  }

  fillSelect(layerSelect, "layer", depth);
  fillSelect(headSelect, "head", heads);
  writePassage();
  draw();
  listen();
})();
