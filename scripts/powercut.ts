/**
 * `npm run powercut`: a guest of QEMU writes on ext4 and xfs, and its power is cut, many times.
 *
 *   npm run powercut                       20 times
 *   npm run powercut -- --times 100
 *   npm run powercut -- --seed 7           the same fates for what was not flushed
 *
 * One line per cut: how long was written, the steps that were acknowledged so far, and what became
 * of the requests that were not flushed. Fails when e2fsck or xfs_repair finds anything that the
 * journal does not mend, or when something that was acknowledged is not there.
 */
import { readOptions, wholeNumber } from './options.ts';
import { cutPower, POWER_CUT_PEERS, type PowerCut } from '../test/peers/power-cuts.ts';
import { missingPeers } from '../test/peers/require-peer.ts';

const USAGE = `npm run powercut -- [options]
  --times N   power cuts (20)
  --seed N    of the moments, the data and the fates (random)`;

const { values } = readOptions(USAGE, {
  options: {
    times: { type: 'string', default: '20' },
    seed: { type: 'string', default: String(Math.floor(Math.random() * 1e6)) },
  },
});
const times = wholeNumber(USAGE, '--times', values.times, 1);
const seed = wholeNumber(USAGE, '--seed', values.seed, 0);
const missing = missingPeers(POWER_CUT_PEERS);
if (missing !== null) {
  process.stderr.write(`${missing}\n`);
  process.exit(2);
}
// An exit ends what was started; a signal alone would leave QEMU behind.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

const row = (...cells: (string | number)[]): void =>
  void process.stdout.write(`${cells.map((cell) => String(cell).padStart(16)).join('')}\n`);
const cuts: PowerCut[] = [];
process.stdout.write(`seed ${seed}; unflushed requests: kept/lost/torn\n`);
row('cut', 'written for, ms', 'ext4 steps', 'unflushed', 'xfs steps', 'unflushed');
await cutPower({
  times,
  seed,
  onCut: (cut) => {
    cuts.push(cut);
    const { number, writingMs, acknowledged } = cut;
    const [ext4, xfs] = (['ext4', 'xfs'] as const).map((kind) => {
      const { kept, lost, torn } = cut.cuts[kind];
      return `${kept}/${lost}/${torn}`;
    });
    row(number, writingMs, acknowledged.ext4, ext4!, acknowledged.xfs, xfs!);
  },
});
const { ext4, xfs } = cuts.at(-1)!.acknowledged;
const gone = cuts.reduce((all, { cuts: { ext4: e, xfs: x } }) => {
  return all + e.lost + e.torn + x.lost + x.torn;
}, 0);
process.stdout.write(
  `${times} power cuts: ${ext4} steps on ext4 and ${xfs} on xfs were acknowledged, ` +
    `and all of them are there; ${gone} requests that were not flushed were lost or torn; ` +
    `fsck found nothing\n`,
);
