// How many payments come to each end in a second, over the last two minutes; what was done to processes is marked.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

import { listen } from "./events.js";
import { state, useTopics } from "./state.js";
import { html } from "./view.js";
import { short, word } from "./words.js";

const SECONDS = 120;
const ENDS = ["SUCCEEDED", "DECLINED", "UNKNOWN"];
const COLOURS = { SUCCEEDED: "--good", DECLINED: "--bad", UNKNOWN: "--wait" };

/** By second: how many payments came to each end, and what was done. Kept for as long as the page is open. */
const counted = new Map();

function at(second) {
  if (!counted.has(second)) counted.set(second, { SUCCEEDED: 0, DECLINED: 0, UNKNOWN: 0, done: [] });
  for (const old of counted.keys()) if (old < second - SECONDS) counted.delete(old);
  return counted.get(second);
}

listen((name, data) => {
  const now = at(Math.floor(Date.now() / 1000));
  if (name === "payments") for (const each of data.payments) if (short(each.state) in now) now[short(each.state)] += 1;
  if (name === "faults") now.done.push(...data.faults.map((each) => `${each.action} ${each.process}`));
});

export function Rates() {
  useTopics("looks");
  const place = useRef(null);
  useEffect(() => {
    const element = place.current; // the reference is empty once the page is left, before this effect ends
    if (element === null) return undefined;
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line") }, ticks: { stroke: colour("--line") } };
    const chart = new uPlot(
      {
        width: element.clientWidth,
        height: 180,
        legend: { live: false },
        cursor: { show: false },
        axes: [axis, { ...axis, size: 40 }],
        scales: { y: { range: (_chart, _low, high) => [0, Math.max(high ?? 0, 4)] } },
        series: [{}, ...ENDS.map((each) => ({ label: each, stroke: colour(COLOURS[each]), width: 2 }))],
        hooks: { draw: [(drawn) => mark(drawn, colour("--accent"))] },
      },
      data(),
      element,
    );
    const drawing = setInterval(() => chart.setData(data()), 1_000);
    const fit = new ResizeObserver(() => chart.setSize({ width: element.clientWidth, height: 180 }));
    fit.observe(element);
    return () => {
      clearInterval(drawing);
      fit.disconnect();
      chart.destroy();
    };
  }, [state.theme, state.language]);
  return html`<figure class="rates"><div ref=${place}></div><figcaption>${word("ratesHelp")}</figcaption></figure>`;
}

function data() {
  const now = Math.floor(Date.now() / 1000);
  const seconds = Array.from({ length: SECONDS }, (_, place) => now - SECONDS + 1 + place);
  return [seconds, ...ENDS.map((end) => seconds.map((second) => counted.get(second)?.[end] ?? 0))];
}

/** Draw a line, with its name, where something was done. */
function mark(chart, colour) {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour;
  ctx.font = `${11 * devicePixelRatio}px sans-serif`;
  for (const [second, { done }] of counted) {
    if (!done.length) continue;
    const x = Math.round(chart.valToPos(second, "x", true));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText(done.join(", "), x + 4, bbox.top + 12 * devicePixelRatio);
  }
  ctx.restore();
}
