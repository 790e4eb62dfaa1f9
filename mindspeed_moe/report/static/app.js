"use strict";
// The page's state - layer, unit, look, zoom - and the charts that follow it.
(() => {
  const get = (id) => document.getElementById(id);
  const data = JSON.parse(get("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const TIME = ["load", "imbalance", "dropped"], whole = [-0.5, data.first.length - 0.5];
  const state = { at: 0, unit: "times", look: null, range: null };
  const config = { responsive: true, displaylogo: false, displayModeBar: coarse.matches ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    toImageButtonOptions: { format: "svg" } };
  let turn = 0;

  const look = () => state.look || (dark.matches ? "dark" : "light");
  const width = (id) => get(id).clientWidth;

  function fail(error) {
    document.body.dataset.failed = "";
    get("trouble").hidden = false;
    get("trouble").textContent = `The charts cannot be drawn: ${error.message}. They need a browser of 2023 or later.`;
    throw error;
  }

  async function table(sent) {
    if (!sent.cells) sent.cells = Charts.rows(await Charts.unpack(sent), sent.side);
    return sent;
  }

  async function numbers(layer) {
    if (!layer.unpacked) {
      layer.unpacked = Charts.rows(await Charts.unpack(layer.tokens), data.first.length);
    }
    return { ...layer, tokens: layer.unpacked };
  }

  async function draw(id, [traces, layout]) {
    // A finger that moves scrolls the page; zooming by dragging is for a mouse.
    await Plotly.react(id, traces, { ...layout, dragmode: coarse.matches ? false : "zoom" }, config);
  }

  function droppedTold(layer) {
    const known = layer.dropped.filter((one) => one !== null);
    if (layer.padded && !known.length) return "Not known: drop and pad was on, and padding hides what was dropped.";
    if (!known.length) return "Not known for this layer.";
    const recorded = data.first.filter((one) => one >= 0).length;
    const part = known.length < recorded ? ` Not known in ${recorded - known.length} of ${recorded} columns.` : "";
    const drops = known.some((one) => one > 0);
    return (drops ? "" : `Nothing was dropped in layer ${layer.layer}.`) + part;
  }

  async function update() {
    const mine = ++turn;
    const colours = Charts.LOOKS[look()];
    const selected = data.layers[state.at];
    const [layer, sent, all] = await Promise.all(
      [numbers(selected), table(selected.sent), table(data.sentByAll[selected.ep])]);
    if (mine !== turn) return;  // another choice was made meanwhile
    const same = data.layers.filter((one) => one.ep === selected.ep).length;
    const mixed = same < data.layers.length ? ` with EP ${selected.ep}` : "";
    get("layer").selectedIndex = state.at;
    get("before").disabled = state.at === 0;
    get("after").disabled = state.at === data.layers.length - 1;
    get("shape").textContent = `${layer.experts} experts, ${layer.experts / layer.ep} on each of ${layer.ep} EP ranks`;
    get("sent-title").textContent = `Layer ${layer.layer}`;
    get("sent-all-title").textContent = same === 1 ? `The only layer${mixed}` : `All ${same} layers${mixed}`;
    get("dropped-told").textContent = droppedTold(selected);
    get("look").textContent = look() === "dark" ? "Light look" : "Dark look";
    for (const button of document.querySelectorAll("[data-unit]")) {
      button.setAttribute("aria-pressed", String(button.dataset.unit === state.unit));
    }
    const lines = (id, key, title, digits, height) =>
      Charts.lines(colours, data, data.layers, selected, key, title, digits, height, width(id), state.range);
    await draw("load", Charts.load(colours, data, layer, state.unit, width("load"), state.range));
    await draw("imbalance", lines("imbalance", "imbalance", "most / mean", 3, 320));
    await draw("sent", Charts.matrix(colours, sent, width("sent")));
    await draw("sent-all", Charts.matrix(colours, all, width("sent-all")));
    await draw("dropped", lines("dropped", "dropped", "pairs in a step", 1, 240));
    document.body.dataset.drawn = `${layer.layer} ${state.unit} ${look()} ${window.innerWidth}`;
  }

  const change = (changed) => { Object.assign(state, changed); return update().catch(fail); };
  const select = (number) => change({ at: data.layers.findIndex((one) => one.layer === Number(number)) });

  // The charts over steps share their zoom.
  function follow(id) {
    get(id).on("plotly_relayout", (event) => {
      const shown = get(id).layout.xaxis.range, now = state.range || whole;
      if (event["xaxis.autorange"]) change({ range: null });
      else if (shown[0] !== now[0] || shown[1] !== now[1]) change({ range: shown.slice() });
    });
  }

  get("layer").addEventListener("change", () => change({ at: get("layer").selectedIndex }));
  get("before").addEventListener("click", () => change({ at: Math.max(0, state.at - 1) }));
  get("after").addEventListener("click", () => change({ at: Math.min(data.layers.length - 1, state.at + 1) }));
  for (const button of document.querySelectorAll("[data-unit]")) {
    button.addEventListener("click", () => change({ unit: button.dataset.unit }));
  }
  for (const button of document.querySelectorAll("[data-layer]")) {
    button.addEventListener("click", () => { select(button.dataset.layer); get("load").scrollIntoView({ block: "center" }); });
  }
  get("look").addEventListener("click", () => {
    document.documentElement.dataset.look = look() === "dark" ? "light" : "dark";
    change({ look: document.documentElement.dataset.look });
  });
  dark.addEventListener("change", () => { if (!state.look) change({}); });
  let resized;
  let before = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === before) return;  // a phone's address bar comes and goes
    before = window.innerWidth;
    clearTimeout(resized);
    resized = setTimeout(() => change({}), 150);
  });

  change({}).then(() => {
    TIME.forEach(follow);
    get("imbalance").on("plotly_click", (event) => select(event.points[0].customdata[1]));
  });
})();
