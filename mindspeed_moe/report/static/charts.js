"use strict";
// What the charts are made of: numbers from the page, colours of a look, and Plotly's traces and layouts.
const Charts = (() => {
  const UNKNOWN = { u2: 65535, u4: 4294967295 };
  const ARRAYS = { u2: Uint16Array, u4: Uint32Array, f4: Float32Array };

  // Sequential: viridis. Diverging: Crameri's vik on light, berlin on dark. All perceptually even and colour-blind safe.
  const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b",
    "#fde725"];
  const VIK = ["#001261", "#033e7d", "#1e6f9d", "#71a8c4", "#c9dde7", "#f3efec", "#eacebd", "#d39774", "#be6533",
    "#8b2706", "#590008"];
  const BERLIN = ["#9eb0ff", "#68a7e0", "#3e86ad", "#26607f", "#163c51", "#14171a", "#33140a", "#612611", "#8e4430",
    "#c57a6c", "#ffadad"];
  const scale = (colours) => colours.map((colour, at) => [at / (colours.length - 1), colour]);
  const LOOKS = {
    light: { ink: "#1b2127", soft: "#59636e", line: "#e6e9ec", card: "#ffffff", gap: "#c3c8ce", accent: "#0a62ad",
      other: "rgba(89,99,110,0.38)", part: "rgba(27,33,39,0.22)", even: scale(VIK), rising: scale(VIRIDIS) },
    dark: { ink: "#e4e8ec", soft: "#9ba6b1", line: "#252c34", card: "#171c22", gap: "#4a535d", accent: "#79b8ff",
      other: "rgba(155,166,177,0.34)", part: "rgba(228,232,236,0.22)", even: scale(BERLIN), rising: scale(VIRIDIS) },
  };

  async function unpack(packed) {
    const text = atob(packed.data);
    const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    const width = ARRAYS[packed.kind].BYTES_PER_ELEMENT;
    const count = planes.length / width;
    const mixed = new Uint8Array(planes.length);
    for (let plane = 0; plane < width; plane++) {
      for (let at = 0; at < count; at++) mixed[at * width + plane] = planes[plane * count + at];
    }
    const numbers = new ARRAYS[packed.kind](mixed.buffer);
    return Array.from(numbers, (number) =>
      number === UNKNOWN[packed.kind] || Number.isNaN(number) ? null : number / packed.divisor);
  }

  const rows = (flat, width) =>
    Array.from({ length: flat.length / width }, (_, at) => flat.slice(at * width, (at + 1) * width));
  const FORMATS = [0, 1, 2, 3].map((digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
  const number = (value, digits = 0) => FORMATS[digits].format(value);

  function bytes(value) {
    if (value === null) return "not known";
    const units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let at = 0;
    while (value >= 999.5 && at < units.length - 1) { value /= 1000; at++; }
    return `${at && value < 99.5 ? value.toPrecision(value < 9.95 ? 2 : 3) : Math.round(value)} ${units[at]}`;
  }

  // Columns stand at 0, 1, 2...; their ticks tell round steps.
  function ticks(data, low, high, most) {
    const from = Math.max(0, Math.ceil(low)), to = Math.min(data.first.length - 1, Math.floor(high));
    const columns = [];
    for (let at = from; at <= to; at++) if (data.first[at] >= 0) columns.push(at);
    if (!columns.length) return { vals: [], text: [] };
    const span = data.last[columns[columns.length - 1]] - data.first[columns[0]];
    const rough = Math.max(1, span / most), power = 10 ** Math.floor(Math.log10(rough));
    const every = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const apart = (to - from) / (most * 1.6);
    const vals = [], text = [];
    for (const at of columns) {
      const round = Math.ceil(data.first[at] / every) * every;
      if (round <= data.last[at] && (!vals.length || at - vals[vals.length - 1] >= apart)) {
        vals.push(at);
        text.push(number(round));
      }
    }
    if (vals.length) return { vals, text };
    return { vals: [columns[0]], text: [number(data.first[columns[0]])] };
  }

  const steps = (data, at) => data.first[at] < 0 ? "nothing recorded"
    : data.first[at] === data.last[at] ? `step ${number(data.first[at])}`
      : `steps ${number(data.first[at])} to ${number(data.last[at])}, mean`;

  function layout(look, more) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, showlegend: false,
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, 'Liberation Sans', sans-serif", size: 12,
        color: look.soft },
      hoverlabel: { bgcolor: look.card, bordercolor: look.soft, font: { color: look.ink, size: 13 }, align: "left" },
      margin: { l: 56, r: 8, t: 12, b: 44 }, ...more,
    };
  }

  function axis(look, title, more = {}) {
    return { title: { text: title, standoff: 8 }, gridcolor: look.line, linecolor: look.line, zeroline: false,
      ticks: "outside", tickcolor: look.line, automargin: true, ...more };
  }

  function timeAxis(look, data, width, range) {
    const [low, high] = range || [-0.5, data.first.length - 0.5];
    const { vals, text } = ticks(data, low, high, Math.max(2, Math.floor(width / 85)));
    return axis(look, "training step", { range: [low, high], tickmode: "array", tickvals: vals, ticktext: text,
      showgrid: false });
  }

  const bar = (look, title, more) => ({ title: { text: title, side: "top", font: { size: 12 } }, orientation: "h",
    x: 1, xanchor: "right", y: 1, yanchor: "bottom", ypad: 6, xpad: 16, ticklabeloverflow: "allow", len: 260, lenmode: "pixels", thickness: 10,
    outlinewidth: 0, tickfont: { size: 11 }, ...more });

  // For each column of tokens [E][C]: the mean of the experts that are known, and how many they are.
  function means(tokens) {
    return tokens[0].map((_, column) => {
      let sum = 0, known = 0;
      for (const row of tokens) if (row[column] !== null) { sum += row[column]; known++; }
      return { mean: known ? sum / known : 0, known };
    });
  }

  function nothing(look, told) {
    return told ? [] : [{ text: "not known", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5,
      font: { size: 15, color: look.soft } }];
  }

  function load(look, data, layer, unit, width, range) {
    const { tokens } = layer, usual = means(tokens), when = data.first.map((_, at) => steps(data, at));
    const local = layer.experts / layer.ep;
    const times = tokens.map((row) => row.map((value, at) =>
      value === null || !usual[at].mean ? null : value / usual[at].mean));
    const whose = usual.map(({ known }) => known < layer.experts ? `the mean of ${known} known experts` : "the mean");
    const customdata = tokens.map((row, expert) => row.map((value, at) => value === null ? null :
      [when[at], Math.floor(expert / local), number(value, 1), times[expert][at] === null ? "no" :
        number(times[expert][at], 2), whose[at]]));
    const trace = { type: "heatmap", customdata, hoverongaps: false, xgap: 0, ygap: 0,
      hovertemplate: "<b>expert %{y}</b>, EP rank %{customdata[1]}<br>%{customdata[0]}<br>%{customdata[2]} tokens<br>" +
        "%{customdata[3]} times %{customdata[4]}<extra></extra>" };
    if (unit === "times") {
      const logs = times.map((row) => row.map((one) => one === null ? null : Math.log2(Math.max(one, 1 / 1024))));
      const far = logs.flat().filter((one) => one !== null).map(Math.abs).sort((a, b) => a - b);
      const most = far.length ? far[Math.floor(0.97 * (far.length - 1))] : 1;
      const reach = [0.25, 0.5, 1, 2, 3].find((one) => one >= most) || 3;
      const at = reach < 1 ? [-reach, 0, reach] : Array.from({ length: 2 * reach + 1 }, (_, one) => one - reach);
      const text = at.map((one) => `${number(2 ** one, one < -2 ? 3 : 2)}x`);
      Object.assign(trace, { z: logs, zmin: -reach, zmax: reach, colorscale: look.even,
        colorbar: bar(look, "tokens, times the mean of all experts", { tickvals: at, ticktext: text }) });
    } else {
      Object.assign(trace, { z: tokens, zmin: 0, colorscale: look.rising,
        colorbar: bar(look, "tokens in a step", { nticks: 5, tickformat: "~s" }) });
    }
    const parts = layer.ep <= 64 ? Array.from({ length: layer.ep - 1 }, (_, at) => (at + 1) * local - 0.5) : [];
    const room = width < 560 ? 480 : 1100;
    return [[trace], layout(look, {
      height: Math.round(Math.min(room, Math.max(360, layer.experts * (layer.experts > 128 ? 3 : 5) + 130))),
      plot_bgcolor: look.gap, margin: { l: 56, r: 8, t: 8, b: 44 },
      xaxis: timeAxis(look, data, width, range),
      yaxis: axis(look, "expert", { range: [layer.experts - 0.5, -0.5], showgrid: false }),
      shapes: parts.map((y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
        line: { color: look.part, width: 1 } })),
    })];
  }

  function lines(look, data, layers, selected, key, title, digits, height, width, range) {
    const x = data.first.map((_, at) => at);
    const trace = (layer) => {
      const own = layer === selected;
      return { type: "scatter", mode: layer[key].length < 3 ? "lines+markers" : "lines", x, y: layer[key],
        name: `layer ${layer.layer}`, connectgaps: false,
        customdata: data.first.map((_, at) => [steps(data, at), layer.layer]),
        line: { color: own ? look.accent : look.other, width: own ? (width < 560 ? 1.75 : 2.25) : 1 },
        hovertemplate: `<b>layer ${layer.layer}</b><br>%{customdata[0]}<br>%{y:,.${digits}~f}<extra></extra>` };
    };
    const any = layers.some((layer) => layer[key].some((one) => one !== null));
    const drawn = layers.filter((layer) => layer !== selected).concat([selected]);
    return [drawn.map(trace), layout(look, {
      height: any ? height : 110, annotations: nothing(look, any), hovermode: "closest", hoverdistance: 12, xaxis: { ...timeAxis(look, data, width, range), visible: any },
      yaxis: axis(look, title, { visible: any, rangemode: key === "dropped" ? "tozero" : "normal" }),
    })];
  }

  function matrix(look, sent, width) {
    const { cells, block, side } = sent;
    const name = (at) => block === 1 ? `rank ${at}` : `ranks ${at * block} to ${(at + 1) * block - 1}`;
    const flat = cells.flat().filter((one) => one !== null);
    const sum = flat.reduce((a, b) => a + b, 0), mean = sum / flat.length || 1;
    const far = flat.map((one) => Math.abs(one / mean - 1)).sort((a, b) => a - b);
    const reach = [0.25, 0.5, 1].find((one) => one >= far[Math.floor(0.97 * (far.length - 1))]) || 1;
    const at = [1 - reach, 1, 1 + reach].map((one) => one * mean), gap = side <= 32 ? 1 : 0;
    const trace = { type: "heatmap", z: cells, zmin: at[0], zmax: at[2], colorscale: look.even, xgap: gap, ygap: gap,
      hoverongaps: false,
      customdata: cells.map((row, from) => row.map((one, to) => [name(from), name(to), bytes(one),
        one === null || !sum ? "" : `${number(100 * one / sum, 2)}% of all bytes`])),
      hovertemplate: "from EP %{customdata[0]}<br>to EP %{customdata[1]}<br><b>%{customdata[2]}</b><br>" +
        "%{customdata[3]}<extra></extra>",
      colorbar: bar(look, "bytes; the middle is the mean", { tickvals: at, ticktext: at.map(bytes), len: Math.min(240, width * 0.6) }) };
    if (width / side > 56) {
      Object.assign(trace, { text: cells.map((row) => row.map((one) => one === null ? "" : bytes(one))),
        texttemplate: "%{text}", textfont: { size: 11 } });
    }
    const range = [-0.5, side - 0.5];
    const ends = side <= 16 ? { dtick: 1 } : { nticks: 9 };
    const rank = block === 1 ? "EP rank" : `EP ranks, ${block} together`;
    return [[trace], layout(look, {
      height: Math.round(Math.min(560, width * 0.92 + 60)), plot_bgcolor: look.gap,
      margin: { l: 52, r: 8, t: 8, b: 44 },
      xaxis: axis(look, `to ${rank}`, { range, showgrid: false, constrain: "domain", ...ends }),
      yaxis: axis(look, `from ${rank}`, { range: range.slice().reverse(), showgrid: false, scaleanchor: "x",
        constrain: "domain", ...ends }),
    })];
  }

  return { LOOKS, unpack, rows, load, lines, matrix, number, bytes };
})();
