/** The marks that the data plane is held against, and what a measurement says of them. Pure. */
import type { Placement } from './placement.ts';
import { intervalText, type Summary } from './statistics.ts';

export type Mark = {
  /** What is measured: name of a scenario, or of a measurement of its own. */
  readonly work: string;
  readonly rival: string;
  /** The ratio that is asked for, above 1 we are faster. */
  readonly least: number;
};

export type Measured = {
  readonly work: string;
  readonly rival: string;
  readonly ratio: Summary;
  /** Of the nanoseconds per frame that both loops count themselves. */
  readonly loopRatio: Summary | null;
  /** Share of the time that our loop had frames, and that our client had; null: nobody knows. */
  readonly busyShare: number | null;
  readonly clientShare: number | null;
  /** How many pairs there were where the virtual cores were in each place, if anybody looked. */
  readonly placements?: readonly { readonly placement: Placement; readonly ratio: Summary }[];
  /** What else the mark asks for and was not so: the mark is missed, whatever the ratio is. */
  readonly unmet?: string;
};

/** Names of what is measured beside the scenarios. */
export const UPLINK = 'veth uplink 64 B';
export const ROUND_TRIP = 'round trip idle';
export const FLOOR = 'C loop';

export const MARKS: readonly Mark[] = [
  { work: 'loop split 64 B', rival: 'dpdk', least: 1.5 },
  { work: 'loop packed 64 B', rival: 'dpdk', least: 1 },
  { work: 'loop split 1500 B', rival: 'dpdk', least: 1.5 },
  { work: 'loop packed 1500 B', rival: 'dpdk', least: 1.5 },
  { work: 'pair split 64 B', rival: 'dpdk', least: 1.5 },
  { work: 'pair packed 64 B', rival: 'dpdk', least: 1.5 },
  { work: 'pair split 64 B', rival: 'ovs', least: 2 },
  { work: 'pair packed 64 B', rival: 'ovs', least: 2 },
  { work: 'pair split 1500 B', rival: 'ovs', least: 2 },
  { work: 'pair packed 1500 B', rival: 'ovs', least: 2 },
  { work: ROUND_TRIP, rival: 'ovs', least: 1 },
  { work: UPLINK, rival: 'dpdk-xdp', least: 1 },
  { work: 'loop split 64 B', rival: FLOOR, least: 0.5 },
  { work: 'loop packed 64 B', rival: FLOOR, least: 0.5 },
  { work: 'loop split 1500 B', rival: FLOOR, least: 0.5 },
  { work: 'loop packed 1500 B', rival: FLOOR, least: 0.5 },
];

/** A loop that is idle for more than the rest waits for its client. */
const BUSY = 0.9;
/** A client that is idle for less than the rest makes no more frames for a faster loop. */
const SATURATED = 0.95;

export type Verdict = {
  readonly mark: Mark;
  /** Null: nothing was measured. */
  readonly measured: Measured | null;
  /** The summary that decides, and which one that is. */
  readonly decides: 'rate' | 'own loops';
  readonly summary: Summary | null;
  readonly answer: 'met' | 'missed' | 'not measured';
};

/**
 * Where the client is what holds the rate, both rates say as much of it: own loops decide. There
 * is no other figure of a C loop.
 */
export function judge(mark: Mark, all: readonly Measured[]): Verdict {
  const measured = all.find((m) => m.work === mark.work && m.rival === mark.rival) ?? null;
  if (measured === null) {
    return { mark, measured, decides: 'rate', summary: null, answer: 'not measured' };
  }
  const { loopRatio, busyShare, clientShare } = measured;
  const waits = busyShare !== null && busyShare < BUSY;
  const isSaturated = clientShare !== null && clientShare >= SATURATED;
  const isHeld = loopRatio !== null && (waits || isSaturated || mark.rival === FLOOR);
  const summary = isHeld ? loopRatio : measured.ratio;
  const isMet = summary.median >= mark.least && measured.unmet === undefined;
  const answer = isMet ? 'met' : 'missed';
  return { mark, measured, decides: isHeld ? 'own loops' : 'rate', summary, answer };
}

/** The table of marks as cells, its head first: all, or of the work that was asked for. */
export function markRows(
  all: readonly Measured[],
  isChosen: (work: string) => boolean = () => true,
): string[][] {
  const figures = ['mark', 'median', '95 %', 'least .. most', 'pairs', 'rate', 'own loops'];
  const head = ['work', 'against', ...figures, 'decides', ''];
  const verdicts = MARKS.filter(({ work }) => isChosen(work)).map((mark) => judge(mark, all));
  const rows = verdicts.map((verdict) => {
    const { mark, measured, summary } = verdict;
    const cells = [mark.work, mark.rival, mark.least.toFixed(1)];
    if (measured === null || summary === null) {
      return [...cells, '-', '-', '-', '0', '-', '-', '-', verdict.answer];
    }
    const { ratio, loopRatio } = measured;
    return [
      ...cells,
      summary.median.toFixed(2),
      intervalText(summary),
      `${summary.min.toFixed(2)} .. ${summary.max.toFixed(2)}`,
      pairsText(measured, summary),
      mark.rival === FLOOR ? '-' : ratio.median.toFixed(2),
      loopRatio === null ? '-' : loopRatio.median.toFixed(2),
      reasonText(verdict),
      answerText(verdict),
    ];
  });
  return [head, ...rows];
}

/** "16 far", "14 far, 2 near": so many of each place of the cores. */
function pairsText({ placements = [] }: Measured, { count }: Summary): string {
  const each = placements.map(({ placement, ratio }) => `${ratio.count} ${placement}`);
  return each.length === 0 ? `${count}` : each.join(', ');
}

/** Which figure decides, and how busy our loop and its client were, which is why. */
function reasonText({ decides, measured }: Verdict): string {
  const shares = [measured?.busyShare ?? null, measured?.clientShare ?? null];
  if (shares.includes(null)) return decides;
  const [ours, client] = shares.map((share) => (share! * 100).toFixed(0));
  return `${decides}: ${ours} % busy, client ${client} %`;
}

/** "met", "missed by 12 %"; and whether the interval holds the mark, so that it could be either. */
function answerText({ mark, measured, summary, answer }: Verdict): string {
  if (summary === null || measured === null) return answer;
  if (measured.unmet !== undefined) return `missed: ${measured.unmet}`;
  const short = `missed by ${((1 - summary.median / mark.least) * 100).toFixed(0)} %`;
  const isOpen = summary.low < mark.least && summary.high >= mark.least;
  return `${answer === 'met' ? answer : short}${isOpen ? ', within the noise' : ''}`;
}
