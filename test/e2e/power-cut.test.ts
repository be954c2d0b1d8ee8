/** The power fails under file systems of a guest: `npm run powercut -- --times N` for more. */
import { test } from 'node:test';
import { cutPower, POWER_CUT_PEERS } from '../peers/power-cuts.ts';
import { requirePeer } from '../peers/require-peer.ts';

const TIMES = 3;

test(`what was acknowledged outlives ${TIMES} power cuts, on ext4 and on xfs`, async (t) => {
  if (!requirePeer(t, ...POWER_CUT_PEERS)) return;
  const seed = Math.floor(Math.random() * 1e6);
  t.diagnostic(`seed ${seed}`);
  await cutPower({
    times: TIMES,
    seed,
    onCut: (cut) => t.diagnostic(JSON.stringify(cut)),
  });
});
