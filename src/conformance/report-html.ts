/** The report as one HTML file without anything from elsewhere; filters by verdict and text. */
import { escapeMarkup } from './report-junit.ts';
import { type Report, type ReportedCheck, sortedChecks } from './report.ts';

const STYLE = `
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;
color:#1b1f24;background:#fff}
h1{font-size:1.4rem;margin:0 0 .3rem}code,pre{font:13px/1.4 ui-monospace,monospace}
.facts{color:#555}.bar{position:sticky;top:0;background:#fff;padding:.6rem 0;
border-bottom:1px solid #ddd;display:flex;gap:1rem;flex-wrap:wrap;align-items:center}
label{cursor:pointer}input[type=search]{padding:.25rem .5rem;min-width:14rem}
details{border-bottom:1px solid #eee;padding:.35rem 0}summary{cursor:pointer;display:flex;gap:.7rem}
.v{min-width:6.5rem;font-weight:600}.fail .v{color:#b3261e}.pass .v{color:#1a7f37}
.error .v{color:#9a6700}.na .v{color:#777}.id{min-width:15rem;font-family:ui-monospace,monospace;
font-size:13px}.s{color:#777;min-width:3.5rem}.why{margin:.3rem 0 .3rem 7.2rem;color:#b3261e}
.na .why,.pass .why{color:#555}.rule{margin:.3rem 0 .3rem 7.2rem;color:#444}
pre{margin:.4rem 0 .4rem 7.2rem;padding:.6rem;background:#f6f8fa;overflow:auto}
@media (prefers-color-scheme:dark){body,.bar{background:#111417;color:#e6e6e6}
pre{background:#1c2126}
.facts,.rule,.s{color:#a8a8a8}details,.bar{border-color:#333}}`;

const SCRIPT = `
const boxes=[...document.querySelectorAll('input[type=checkbox]')];
const search=document.querySelector('input[type=search]');
function show(){const on=new Set(boxes.filter(b=>b.checked).map(b=>b.value));
const words=search.value.toLowerCase();let n=0;
for(const d of document.querySelectorAll('details')){
const hit=on.has(d.className)&&d.textContent.toLowerCase().includes(words);d.hidden=!hit;if(hit)n++}
document.querySelector('#shown').textContent=n+' shown'}
for(const b of boxes)b.addEventListener('change',show);
search.addEventListener('input',show);show();`;

const CLASS_OF = { pass: 'pass', fail: 'fail', error: 'error', 'not applicable': 'na' } as const;

export function htmlReport(report: Report): string {
  const { side, socket, device, level, startedAt, counts, features } = report;
  const title = escapeMarkup(`${side} ${socket}: vhost-user conformance`);
  const boxes = (Object.keys(CLASS_OF) as (keyof typeof CLASS_OF)[]).map((verdict) => {
    const on = verdict === 'fail' || verdict === 'error' ? ' checked' : '';
    const box = `<input type="checkbox" value="${CLASS_OF[verdict]}"${on}>`;
    return `<label>${box} ${verdict} (${counts[verdict]})</label>`;
  });
  const facts = [
    `device ${device}, level ${level}, ${startedAt}, ${(report.milliseconds / 1000).toFixed(1)} s`,
    `protocol features: ${features.protocol.join(' ') || 'none'}`,
    `virtio features: ${features.virtio.join(' ') || 'none'}`,
  ];
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${title}</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>${STYLE}</style></head>
<body><h1>${title}</h1>
${facts.map((fact) => `<div class="facts">${escapeMarkup(fact)}</div>`).join('\n')}
<div class="bar">${boxes.join(' ')} <input type="search" placeholder="id, title, message">
<span id="shown"></span></div>
${sortedChecks(report).map(row).join('\n')}
<script>${SCRIPT}</script></body></html>
`;
}

function row(each: ReportedCheck): string {
  const { id, title, rule, section, severity, verdict, detail, transcript } = each;
  const critical = each.critical ? ' (critical)' : '';
  const why = detail === '' ? '' : `<div class="why">${escapeMarkup(detail)}</div>`;
  const steps = transcript.length === 0 ? '' : `<pre>${escapeMarkup(transcript.join('\n'))}</pre>`;
  return (
    `<details class="${CLASS_OF[verdict]}"><summary><span class="v">${verdict}${critical}</span>` +
    `<span class="s">${severity}</span><span class="id">${escapeMarkup(id)}</span>` +
    `<span>${escapeMarkup(title)}</span></summary>${why}` +
    `<div class="rule">${escapeMarkup(rule)} [${escapeMarkup(section)}]</div>${steps}` +
    `<pre>${escapeMarkup(each.reproduce)}</pre></details>`
  );
}
