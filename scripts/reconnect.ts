/**
 * `npm run reconnect`: two Linux guests in QEMU talk while their switch is killed and restarted.
 *
 *   npm run reconnect                             50 times, packed where QEMU connects, split else
 *   npm run reconnect -- --times 10
 *   npm run reconnect -- --packed none|both       the other forms of rings
 *   npm run reconnect -- --queues 2               queue pairs of both guests
 *   npm run reconnect -- --software 16 --times 5  our own guests instead, so many, in a ring
 *
 * One line per restart, milliseconds after the kill. Fails when traffic does not go on, or when
 * the TCP stream that goes on over all restarts arrives changed.
 */
import { readOptions, wholeNumber, wrongUsage } from './options.ts';
import { restartUnderTraffic, type Restart } from '../test/peers/qemu-reconnect.ts';
import { restorePorts } from '../test/peers/software-reconnect.ts';

const USAGE = `npm run reconnect -- [options]
  --times N      restarts (50)
  --packed WHO   which guests have packed rings: none, both, connecting (connecting)
  --queues N     queue pairs of both guests (1)
  --software N   so many guests of ours, in a ring, instead of two in QEMU`;

const { values } = readOptions(USAGE, {
  options: {
    times: { type: 'string', default: '50' },
    packed: { type: 'string', default: 'connecting' },
    queues: { type: 'string', default: '1' },
    software: { type: 'string', default: '0' },
  },
});
const times = wholeNumber(USAGE, '--times', values.times, 1);
const queuePairs = wholeNumber(USAGE, '--queues', values.queues, 1);
const software = wholeNumber(USAGE, '--software', values.software, 0);
const packed = { none: [false, false], both: [true, true], connecting: [true, false] }[
  values.packed
];
if (packed === undefined) {
  wrongUsage(USAGE, `--packed: "${values.packed}" is not one of none, both, connecting`);
}

const row = (...cells: (string | number)[]): void =>
  void process.stdout.write(`${cells.map((cell) => String(cell).padStart(10)).join('')}\n`);

if (software > 0) {
  row('restart', 'switch', 'half', 'all');
  await restorePorts(software, times, ({ number, switchMs, halfMs, allMs }) =>
    row(number, switchMs, halfMs, allMs),
  );
  process.exit(0);
}

row('restart', 'switch', 'connects', 'listens', 'traffic');
const { restarts, longestSilenceMs, streamBytes } = await restartUnderTraffic({
  times,
  rings: [
    { packed: packed[0]!, queuePairs },
    { packed: packed[1]!, queuePairs },
  ],
  onRestart: ({ number, switchMs, upMs, trafficMs }) =>
    row(number, switchMs, upMs[0], upMs[1], trafficMs),
});

function spread(what: string, of: (restart: Restart) => number): void {
  const sorted = restarts.map(of).toSorted((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)]!;
  process.stdout.write(`${what}: median ${median} ms, longest ${sorted.at(-1)} ms\n`);
}
spread('switch answers', ({ switchMs }) => switchMs);
spread('rings run, QEMU connects (tries once a second)', ({ upMs }) => upMs[0]);
spread('rings run, QEMU listens', ({ upMs }) => upMs[1]);
spread('both guests talk and the stream moves', ({ trafficMs }) => trafficMs);
const mib = (streamBytes / 2 ** 20).toFixed(1);
process.stdout.write(
  `${restarts.length} restarts survived; one TCP stream of ${mib} MiB over all of them, ` +
    `checksums equal; longest row of lost echo requests ${longestSilenceMs} ms\n`,
);
