// The map page: every map is a canvas that draws all points at once; maps of a view share colours, filters and the point
// that is looked at. Data comes from the page itself (see tasks/projection/page.py).
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const words = (text) => new Uint16Array(bytes(text).buffer);
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const NONE = 65535, STEPS = 32, NEW = 1, FLAGGED = 2;
  const $ = (id) => document.getElementById(id);
  const make = (tag, props = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), props);
    element.append(...children);
    return element;
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shown = (value) => (Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3)
    ? value.toExponential(2) : String(+value.toPrecision(4)));

  const views = data.views.map((view) => ({
    ...view,
    flags: bytes(view.flags),
    maps: view.maps.map((map) => ({ ...map, xy: words(map.xy), box: home(), grid: null, canvas: null })),
    colours: view.colours.map((colour) => ({ ...colour, values: words(colour.values), hidden: new Set(), low: 0, high: 1 })),
    sparks: view.sparks && { steps: view.sparks.steps, values: bytes(view.sparks.values), range: floats(view.sparks.range) },
  }));
  let view = views[0], colour = view.colours[0], chosen = -1, order = [], visible = 0;

  function home() { return { x: -0.03, y: -0.03, size: 1.06 }; }

  // ---- colours: a bucket a point, points sorted by bucket, so that a frame changes its colour few times
  function ramp(t) { // dark blue over teal to yellow, as viridis
    const stops = [[68, 30, 120], [59, 82, 139], [33, 145, 140], [94, 201, 98], [240, 215, 50]];
    const place = Math.min(t * 4, 3.999), i = Math.floor(place), f = place - i;
    return `rgb(${stops[i].map((a, c) => Math.round(a + f * (stops[i + 1][c] - a))).join(",")})`;
  }
  function paint(bucket) {
    if (bucket === NONE) return dark.matches ? "#5a6772" : "#b4bcc2";
    if (colour.kind === "number") return ramp(bucket / (STEPS - 1));
    const ring = Math.floor(bucket / 10);
    const base = ["#0b7285", "#d9822b", "#7048b6", "#3a9a4f", "#c9304f", "#3b6fd4", "#a0762b", "#c657a0", "#5c7a29", "#555f6b"];
    if (bucket < 10) return dark.matches ? `color-mix(in srgb, ${base[bucket]} 75%, white)` : base[bucket];
    return `hsl(${(bucket * 137.5) % 360} ${50 + 15 * (ring % 2)}% ${(dark.matches ? 58 : 42) + 8 * (ring % 3 - 1)}%)`;
  }
  const bucketOf = (i) => (colour.values[i] === NONE ? NONE
    : colour.kind === "number" ? Math.round((colour.values[i] / (NONE - 1)) * (STEPS - 1)) : colour.values[i]);
  function isHidden(i) {
    const value = colour.values[i];
    if (colour.kind !== "number") return colour.hidden.has(value);
    if (value === NONE) return colour.hidden.has(NONE);
    const t = value / (NONE - 1);
    return t < colour.low || t > colour.high;
  }
  function arrange() {
    const buckets = new Map();
    visible = 0;
    for (let i = 0; i < view.n; i++) {
      if (isHidden(i)) continue;
      const bucket = bucketOf(i);
      if (!buckets.has(bucket)) buckets.set(bucket, []);
      buckets.get(bucket).push(i);
      visible++;
    }
    order = [...buckets].sort((a, b) => (b[0] === NONE) - (a[0] === NONE) || a[0] - b[0]); // the grey ones below
    for (const map of view.maps) map.grid = null;
    $("count").textContent = `${visible.toLocaleString("en")} of ${view.n.toLocaleString("en")} points shown`;
    drawAll();
  }

  // ---- drawing
  function place(map, i) {
    const side = map.canvas.width;
    return [((map.xy[2 * i] / NONE - map.box.x) / map.box.size) * side, ((map.xy[2 * i + 1] / NONE - map.box.y) / map.box.size) * side];
  }
  function draw(map) {
    const start = performance.now(), canvas = map.canvas, context = canvas.getContext("2d");
    const ratio = devicePixelRatio || 1, side = Math.round(canvas.clientWidth * ratio);
    if (canvas.width !== side) canvas.width = canvas.height = side;
    context.clearRect(0, 0, side, side);
    const zoom = Math.min(2.5, 1 / Math.sqrt(map.box.size));
    const size = ratio * zoom * (view.n > 20000 ? 1.4 : view.n > 4000 ? 2 : view.n > 300 ? 3.4 : 6);
    const scale = side / map.box.size / NONE, dx = (map.box.x * side) / map.box.size + size / 2;
    const dy = (map.box.y * side) / map.box.size + size / 2, xy = map.xy;
    mark(map, context, NEW, $("mark-new").checked, size, ratio); // below the points, so that their colours are seen
    context.globalAlpha = view.n > 300 ? 0.8 : 0.95;
    for (const [bucket, members] of order) {
      context.fillStyle = paint(bucket);
      for (const i of members) {
        const x = xy[2 * i] * scale - dx, y = xy[2 * i + 1] * scale - dy;
        if (x > -size && y > -size && x < side && y < side) context.fillRect(x, y, size, size);
      }
    }
    context.globalAlpha = 1;
    mark(map, context, FLAGGED, $("mark-flagged").checked, size, ratio);
    if (chosen >= 0) {
      const [x, y] = place(map, chosen);
      context.strokeStyle = css("--ink");
      context.lineWidth = 2 * ratio;
      context.beginPath();
      context.arc(x, y, size + 4 * ratio, 0, 7);
      context.stroke();
    }
    canvas.dataset.milliseconds = (performance.now() - start).toFixed(1);
  }
  function mark(map, context, flag, wanted, size, ratio) {
    if (!wanted) return;
    context.strokeStyle = css(flag === NEW ? "--ink" : "--bad");
    context.lineWidth = (flag === NEW ? 0.8 : 1.4) * ratio;
    context.globalAlpha = flag === NEW ? 0.35 : 1;
    context.beginPath();
    const reach = size / 2 + (flag === NEW ? 1.5 : 2.5) * ratio;
    for (const [, members] of order) {
      for (const i of members) {
        if (!(view.flags[i] & flag)) continue;
        const [x, y] = place(map, i);
        if (flag === NEW) context.rect(x - reach, y - reach, 2 * reach, 2 * reach);
        else { context.moveTo(x - reach, y - reach); context.lineTo(x + reach, y + reach); context.moveTo(x - reach, y + reach); context.lineTo(x + reach, y - reach); }
      }
    }
    context.stroke();
    context.globalAlpha = 1;
  }
  const waiting = new Set();
  function later(map) { // at most one drawing a frame
    if (!waiting.size) requestAnimationFrame(() => { const maps = [...waiting]; waiting.clear(); maps.forEach(draw); });
    waiting.add(map);
  }
  function drawAll() { view.maps.forEach((map) => map.canvas && later(map)); }

  // ---- the nearest point, by a grid of cells over the whole map
  function nearest(map, x, y, reach) {
    const cells = 128;
    if (!map.grid) {
      map.grid = new Map();
      for (const [, members] of order) for (const i of members) {
        const key = (Math.floor((map.xy[2 * i] / NONE) * (cells - 1)) << 8) | Math.floor((map.xy[2 * i + 1] / NONE) * (cells - 1));
        if (!map.grid.has(key)) map.grid.set(key, []);
        map.grid.get(key).push(i);
      }
    }
    const low = (v) => Math.max(0, Math.floor((v - reach) * (cells - 1))), high = (v) => Math.min(cells - 1, Math.floor((v + reach) * (cells - 1)));
    let best = -1, least = reach * reach;
    for (let a = low(x); a <= high(x); a++) for (let b = low(y); b <= high(y); b++) {
      for (const i of map.grid.get((a << 8) | b) || []) {
        const d = (map.xy[2 * i] / NONE - x) ** 2 + (map.xy[2 * i + 1] / NONE - y) ** 2;
        if (d < least) { least = d; best = i; }
      }
    }
    return best;
  }

  // ---- the note beside a point
  function spark(i) {
    const { steps, values, range } = view.sparks, picture = make("canvas", { width: 440, height: 120 });
    const context = picture.getContext("2d");
    context.strokeStyle = css("--accent");
    context.lineWidth = 3;
    context.beginPath();
    let pen = false;
    for (let t = 0; t < steps; t++) {
      const value = values[i * steps + t];
      if (value === 255) { pen = false; continue; }
      const x = 4 + (t / Math.max(1, steps - 1)) * 432, y = 112 - (value / 254) * 104;
      if (pen) context.lineTo(x, y); else context.moveTo(x, y);
      pen = true;
    }
    context.stroke();
    return [picture, make("div", { className: "quiet", textContent: `last ${steps} steps, ${shown(range[2 * i])} to ${shown(range[2 * i + 1])}` })];
  }
  function told(colour, i) {
    const value = colour.values[i];
    if (value === NONE) return "not known";
    return colour.kind === "number" ? shown(colour.min + (value / (NONE - 1)) * (colour.max - colour.min)) : colour.names[value];
  }
  function tell(i, x, y) {
    if (i !== chosen) {
      chosen = i;
      $("tip").hidden = i < 0;
      if (i >= 0) {
        const rows = view.colours.map((each) => make("div", {}, `${each.title}: `, make("b", { textContent: told(each, i) })));
        const notes = [[NEW, view.newTitle], [FLAGGED, "flagged as out of distribution"]].filter(([flag]) => view.flags[i] & flag);
        $("tip").replaceChildren(make("strong", { textContent: view.labels[i] }), ...rows,
          ...notes.map(([, text]) => make("div", { className: "quiet", textContent: text })), ...(view.sparks ? spark(i) : []));
      }
      drawAll();
    }
    if (i >= 0) {
      const tip = $("tip"), box = tip.getBoundingClientRect();
      tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
      tip.style.top = `${y + 14 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 14}px`;
    }
  }

  // ---- pointer and keys
  function zoomAt(map, x, y, factor) {
    const size = Math.min(4, Math.max(1e-4, map.box.size * factor)), real = size / map.box.size;
    map.box = { x: map.box.x + x * map.box.size * (1 - real), y: map.box.y + y * map.box.size * (1 - real), size };
    later(map);
  }
  function attach(map) {
    const canvas = map.canvas, touches = new Map();
    const spot = (event) => { const box = canvas.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoomAt(map, ...spot(event), Math.exp(event.deltaY * 0.0015)); }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); touches.set(event.pointerId, spot(event)); });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => touches.delete(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = spot(event), before = touches.get(event.pointerId);
      if (before && touches.size === 2) {
        const other = [...touches].find(([id]) => id !== event.pointerId)[1];
        const far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1e-3;
        zoomAt(map, (x + other[0]) / 2, (y + other[1]) / 2, far(before) / far([x, y]));
      } else if (before) {
        map.box.x -= (x - before[0]) * map.box.size;
        map.box.y -= (y - before[1]) * map.box.size;
        later(map);
      }
      if (before) touches.set(event.pointerId, [x, y]);
      const reach = (10 / canvas.clientWidth) * map.box.size;
      tell(nearest(map, map.box.x + x * map.box.size, map.box.y + y * map.box.size, reach), event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => tell(-1));
    canvas.addEventListener("dblclick", () => { map.box = home(); later(map); });
    canvas.addEventListener("keydown", (event) => {
      const pan = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (pan) { map.box.x += pan[0] * map.box.size * 0.1; map.box.y += pan[1] * map.box.size * 0.1; later(map); }
      else if (event.key === "+" || event.key === "=") zoomAt(map, 0.5, 0.5, 0.8);
      else if (event.key === "-") zoomAt(map, 0.5, 0.5, 1.25);
      else if (event.key === "0") { map.box = home(); later(map); }
      else if (event.key === "n" || event.key === "p") step(map, event.key === "n" ? 1 : -1);
      else if (event.key === "Escape") tell(-1);
      else return;
      event.preventDefault();
    });
  }
  function step(map, by) {
    if (!visible) return;
    let i = chosen;
    do i = (i + by + view.n) % view.n; while (isHidden(i));
    const [x, y] = place(map, i), box = map.canvas.getBoundingClientRect(), real = box.width / map.canvas.width;
    tell(i, box.left + x * real, box.top + y * real);
  }

  // ---- controls
  function legend() {
    const list = $("legend");
    const swatch = (bucket) => make("span", { className: "swatch", ariaHidden: "true", style: `background:${paint(bucket)}` });
    const box = (bucket, text) => {
      const input = make("input", { type: "checkbox", checked: !colour.hidden.has(bucket) });
      input.addEventListener("change", () => { if (input.checked) colour.hidden.delete(bucket); else colour.hidden.add(bucket); arrange(); });
      return make("li", {}, make("label", {}, input, swatch(bucket), text));
    };
    const rows = [];
    if (colour.kind === "number") {
      const bar = make("div", { className: "ramp", style: `background:linear-gradient(90deg,${[0, 0.25, 0.5, 0.75, 1].map(ramp).join(",")})` });
      const at = (t) => shown(colour.min + t * (colour.max - colour.min));
      for (const [edge, name] of [["low", "at least"], ["high", "at most"]]) {
        const output = make("output", { textContent: at(colour[edge]) });
        const input = make("input", { type: "range", min: 0, max: 1, step: 0.01, value: colour[edge] });
        input.addEventListener("input", () => { colour[edge] = +input.value; output.textContent = at(+input.value); arrange(); });
        rows.push(make("li", {}, make("label", {}, `${name} `, output, input)));
      }
      rows.unshift(make("li", {}, bar));
    } else {
      colour.names.forEach((name, bucket) => rows.push(box(bucket, name)));
    }
    if (colour.values.includes(NONE)) rows.push(box(NONE, colour.absent));
    list.replaceChildren(...rows);
    $("note").textContent = colour.note;
  }
  function setAll(on) {
    if (colour.kind === "number") { colour.low = 0; colour.high = on ? 1 : -1; }
    colour.hidden = new Set(on ? [] : [NONE, ...(colour.names || []).keys()]);
    legend();
    arrange();
  }
  function choose(index) {
    colour = view.colours[index];
    legend();
    arrange();
  }
  function open(index) {
    view = views[index];
    chosen = -1;
    $("tip").hidden = true;
    $("colour").replaceChildren(...view.colours.map((each, i) => make("option", { value: i, textContent: each.title })));
    $("maps").replaceChildren(...view.maps.map((map) => {
      map.canvas = make("canvas", { tabIndex: 0 });
      map.canvas.setAttribute("role", "application");
      map.canvas.setAttribute("aria-label", `${map.title}: ${map.words}. Keys: arrows move, plus and minus zoom, 0 resets, n and p go from point to point.`);
      attach(map);
      return make("figure", {}, make("h3", { textContent: map.title }), map.canvas, make("figcaption", { textContent: map.words }));
    }));
    const marks = view.flags.reduce((all, flag) => all | flag, 0);
    $("new-label").hidden = !(marks & NEW);
    $("new-text").textContent = `□ ${view.newTitle}`;
    $("flagged-label").hidden = !(marks & FLAGGED);
    for (const section of document.querySelectorAll("[data-view]")) section.hidden = section.dataset.view !== String(index);
    choose(0);
  }
  $("view").append(...views.map((each, i) => make("option", { value: i, textContent: each.title })));
  $("view-label").hidden = views.length < 2;
  $("view").addEventListener("change", (event) => open(+event.target.value));
  $("colour").addEventListener("change", (event) => choose(+event.target.value));
  $("all").addEventListener("click", () => setAll(true));
  $("nothing").addEventListener("click", () => setAll(false));
  $("reset").addEventListener("click", () => { view.maps.forEach((map) => { map.box = home(); }); drawAll(); });
  for (const id of ["mark-new", "mark-flagged"]) $(id).addEventListener("change", drawAll);
  new ResizeObserver(drawAll).observe($("maps"));
  dark.addEventListener("change", () => { legend(); drawAll(); });
  document.addEventListener("scroll", () => tell(-1), { passive: true });
  open(0);
})();
