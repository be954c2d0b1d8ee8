/** The comparison as one HTML file without anything from elsewhere: the table, and plots as SVG. */
import type { Comparison, PathSummary, SizeSummary } from './comparison.ts';
import type { Spread } from './figures.ts';
import { columnTitles, FAILED, machineLine, NOT_HERE, notes, type Row, tableRows } from './rows.ts';

const STYLE = `
:root{--ink:#1b1f24;--dim:#57606a;--line:#d8dee4;--paper:#fff;--bar:#2f6feb;--device:#8c6fd6;
--warn:#9a6700;--warnbg:#fff8e5}
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--dim:#a0a8b0;--line:#30363d;
--paper:#111417;--bar:#5b8df5;--device:#a68ae6;--warn:#e3b341;--warnbg:#2a2416}}
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:84rem;padding:0 1rem;
color:var(--ink);background:var(--paper)}
h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.1rem;margin:2rem 0 .6rem}
.facts{color:var(--dim)}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;min-width:60rem}
th,td{border-bottom:1px solid var(--line);padding:.35rem .7rem;text-align:left;vertical-align:top}
thead th{border-bottom:2px solid var(--ink)}tbody th{font-weight:500;color:var(--dim)}
td.figure{font-variant-numeric:tabular-nums;white-space:nowrap}td.none{color:var(--dim)}
ul{padding-left:1.2rem}.emulated{background:var(--warnbg);color:var(--warn);padding:.6rem .8rem;
border-left:4px solid var(--warn);font-weight:600;margin:1rem 0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1.4rem;
margin-top:1.4rem}
figure{margin:0}figcaption{font-weight:600;margin-bottom:.3rem}
svg{width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:var(--ink)}
.dim{fill:var(--dim)!important}.bar{fill:var(--bar)}.device{fill:var(--device)}
.whisker{stroke:var(--ink);stroke-width:1.2}`;

export function htmlReport(comparison: Comparison): string {
  const title = 'vring compare: one workload over every path';
  const head = columnTitles(comparison).map((each) => `<th>${escape(each)}</th>`);
  const emulated = comparison.machine.emulated
    ? `<p class="emulated">${escape(notes(comparison)[0]!)}</p>`
    : '';
  const rest = notes(comparison).slice(comparison.machine.emulated ? 1 : 0);
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${title}</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>${STYLE}</style></head>
<body><h1>${title}</h1>
<div class="facts">${escape(machineLine(comparison))}, ${escape(comparison.takenAt)}</div>
${emulated}
<div class="plots">${plots(comparison).join('\n')}</div>
<h2>The paths</h2>
<div class="scroll"><table><thead><tr><th></th>${head.join('')}</tr></thead>
<tbody>${tableRows(comparison).map(htmlRow).join('\n')}</tbody></table></div>
<h2>What these figures are</h2>
<ul>${rest.map((note) => `<li>${escape(note)}</li>`).join('\n')}
<li>CPU: of the guest's threads and the device's, as the scheduler counts them; where the guest's
process does the device's work, the two are one. Whoever polls uses its processor while it waits,
too. Kernel work queues and interrupts that serve no single thread are not in it.</li>
<li>Wake-ups: voluntary context switches of those threads. System calls: as the kernel's own
tracepoint counts them, the guest's kicks among them.</li></ul>
</body></html>
`;
}

function htmlRow({ title, cells, kind }: Row): string {
  const tds = cells.map((cell) => {
    const none = cell === NOT_HERE || cell === FAILED ? ' none' : '';
    return `<td class="${kind}${none}">${escape(cell)}</td>`;
  });
  return `<tr><th>${escape(title)}</th>${tds.join('')}</tr>`;
}

type Bar = { readonly name: string; readonly value: Spread; readonly part: number };

function plots(comparison: Comparison): string[] {
  const done = comparison.paths.filter((path) => path.summary !== null);
  const bars = (of: (summary: PathSummary) => Omit<Bar, 'name'> | null): Bar[] =>
    done.flatMap(({ description, summary }) => {
      const bar = of(summary!);
      return bar === null ? [] : [{ name: description.name, ...bar }];
    });
  const whole = (value: Spread | null): Omit<Bar, 'name'> | null =>
    value === null ? null : { value, part: 0 };
  const sizes = done[0]?.summary?.sizes.map((size) => size.sizeBytes) ?? [];
  const at = (summary: PathSummary, sizeBytes: number): SizeSummary =>
    summary.sizes.find((size) => size.sizeBytes === sizeBytes)!;
  const charts = sizes.flatMap((size) => [
    chart(
      `${size}-byte frames per second, there and back`,
      bars((summary) => whole(at(summary, size).framesPerSecond)),
    ),
    chart(
      `${size} bytes: CPU nanoseconds per frame (purple: the device's)`,
      bars((summary) => {
        const { cpuNsPerFrame: value, deviceCpuNsPerFrame: device } = at(summary, size);
        return { value, part: device === null ? 0 : device.median / value.median };
      }),
    ),
    chart(
      `${size} bytes: system calls per frame`,
      bars((summary) => whole(at(summary, size).systemCallsPerFrame)),
    ),
  ]);
  charts.push(
    chart(
      'round trip of one frame, microseconds',
      bars((s) => whole(s.roundTripUs)),
    ),
  );
  return charts;
}

const WIDTH = 480;
const LABEL_WIDTH = 150;
const VALUE_WIDTH = 70;
const BAR_HEIGHT = 18;
const STEP = 28;

/** Horizontal bars from zero, with the least and the most as a whisker. */
function chart(title: string, bars: readonly Bar[]): string {
  if (bars.length === 0) return '';
  const most = Math.max(...bars.map((bar) => bar.value.max), Number.MIN_VALUE);
  const room = WIDTH - LABEL_WIDTH - VALUE_WIDTH;
  const x = (value: number): string => (LABEL_WIDTH + (value / most) * room).toFixed(1);
  const drawn = bars.map(({ name, value, part }, i) => {
    const y = i * STEP + 4;
    const middle = y + BAR_HEIGHT / 2;
    const length = (value.median / most) * room;
    const device = length * part;
    return (
      `<text x="${LABEL_WIDTH - 8}" y="${middle + 4}" text-anchor="end">${escape(name)}</text>` +
      `<rect class="bar" x="${LABEL_WIDTH}" y="${y}" width="${length.toFixed(1)}" ` +
      `height="${BAR_HEIGHT}" rx="2"/>` +
      (part === 0
        ? ''
        : `<rect class="device" x="${(LABEL_WIDTH + length - device).toFixed(1)}" y="${y}" ` +
          `width="${device.toFixed(1)}" height="${BAR_HEIGHT}" rx="2"/>`) +
      `<path class="whisker" d="M${x(value.min)} ${middle}H${x(value.max)}"/>` +
      `<text class="dim" x="${Number(x(value.max)) + 6}" y="${middle + 4}">` +
      `${short(value.median)}</text>`
    );
  });
  const height = bars.length * STEP + 4;
  return (
    `<figure><figcaption>${escape(title)}</figcaption>` +
    `<svg viewBox="0 0 ${WIDTH} ${height}" role="img">${drawn.join('')}</svg></figure>`
  );
}

function short(value: number): string {
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)}M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(0)}k`;
  if (value >= 1e3) return `${(value / 1e3).toFixed(1)}k`;
  return value >= 10 ? value.toFixed(0) : value.toPrecision(2);
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');
}
