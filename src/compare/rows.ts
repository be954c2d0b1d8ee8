/** The table of the comparison: what is said of each path, row by row; for every form of report. */
import type { Comparison, PathResult, SizeSummary } from './comparison.ts';
import type { Spread } from './figures.ts';

export type Row = {
  readonly title: string;
  /** One cell a path; empty where there is nothing to say. */
  readonly cells: readonly string[];
  readonly kind: 'words' | 'figure';
};

export const NOT_HERE = 'not here';
export const FAILED = 'failed';

/** Column titles. */
export function columnTitles(comparison: Comparison): string[] {
  return comparison.paths.map((path) => path.description.name);
}

export function tableRows(comparison: Comparison): Row[] {
  const { paths } = comparison;
  const words = (title: string, of: (path: PathResult) => string): Row => ({
    title,
    cells: paths.map(of),
    kind: 'words',
  });
  const rows = [
    words('back-end runs in', (path) => path.description.backend),
    words('data plane', (path) => path.description.dataPlane),
    words('control plane', (path) => path.description.controlPlane),
    words('kick', (path) => path.description.kick),
    words('key mechanism', (path) => path.description.mechanism),
    words('fits', (path) => path.description.fits),
    words('frames turn round in', (path) => (path.exception === null ? 'a TAP' : path.exception)),
  ];
  for (const { sizeBytes } of anyOf(paths)) rows.push(...sizeRows(paths, sizeBytes));
  rows.push(figureRow('round trip, us', paths, (path) => text(path.summary?.roundTripUs, 1)));
  rows.push(
    figureRow('round trip p99, us', paths, (path) => text(path.summary?.roundTripP99Us, 1)),
  );
  return rows;
}

function sizeRows(paths: readonly PathResult[], sizeBytes: number): Row[] {
  const row = (what: string, of: (size: SizeSummary) => string): Row =>
    figureRow(`${sizeBytes} bytes: ${what}`, paths, (path) => {
      const size = path.summary?.sizes.find((each) => each.sizeBytes === sizeBytes);
      return size === undefined ? '' : of(size);
    });
  return [
    row('kframes/s', (size) => text(scaled(size.framesPerSecond, 1e-3), 1)),
    row('Gbit/s each way', (size) => text(size.gbitPerSecond, 2)),
    row('CPU ns per frame', (size) => text(size.cpuNsPerFrame, 0)),
    row('of it the device', (size) => text(size.deviceCpuNsPerFrame ?? undefined, 0)),
    row('wake-ups per frame', (size) => text(size.wakeupsPerFrame, 4)),
    row('system calls per frame', (size) => text(size.systemCallsPerFrame ?? undefined, 3)),
    row('lost, corrupt of sent', (size) => `${size.lost}, ${size.corrupt} of ${size.sent}`),
  ];
}

function figureRow(
  title: string,
  paths: readonly PathResult[],
  of: (path: PathResult) => string,
): Row {
  const cells = paths.map((path) => {
    if (path.missing !== null) return NOT_HERE;
    return path.summary === null ? FAILED : of(path);
  });
  return { title, cells, kind: 'figure' };
}

/** What is missing, what failed, and what figures may be compared with what. */
export function notes(comparison: Comparison): string[] {
  const { machine, paths, rounds, seconds, window } = comparison;
  const said: string[] = [];
  if (machine.emulated) {
    said.push(
      'EMULATED MACHINE (QEMU TCG): these figures say how the paths relate here, ' +
        'not how fast they are on a processor',
    );
  }
  said.push(
    `median (least .. most) of ${rounds} rounds, ${seconds} s for each frame size, ` +
      `${window} frames under way; every frame goes there and back and is checked`,
  );
  for (const { description, missing, failure, exception } of paths) {
    if (missing !== null) said.push(`${description.name}: not here: ${missing}`);
    if (failure !== null) said.push(`${description.name}: failed: ${failure}`);
    if (exception !== null && missing === null) {
      said.push(`${description.name}: does not end in a TAP: ${exception}`);
    }
  }
  return said;
}

/** `cpu, 2 cores, 24 GiB, Linux 6.18, Node v26`. */
export function machineLine({ machine }: Comparison): string {
  const kind = machine.emulated ? 'emulated' : machine.virtual ? 'virtual machine' : 'bare metal';
  const { cpu, cores, memoryGib, kernel, node } = machine;
  return `${cpu} (${kind}), ${cores} cores, ${memoryGib} GiB, Linux ${kernel}, Node ${node}`;
}

function anyOf(paths: readonly PathResult[]): readonly SizeSummary[] {
  return paths.find((path) => path.summary !== null)?.summary?.sizes ?? [];
}

function scaled({ median, min, max }: Spread, by: number): Spread {
  return { median: median * by, min: min * by, max: max * by };
}

/** `12.3 (11.0 .. 14.2)`; a dash where it cannot be told. */
function text(value: Spread | undefined, digits: number): string {
  if (value === undefined) return '-';
  const { median, min, max } = value;
  const all = [median, min, max].map((each) => each.toFixed(digits));
  return min === max ? all[0]! : `${all[0]} (${all[1]} .. ${all[2]})`;
}
