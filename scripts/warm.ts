/**
 * Starts a data-plane worker and stops it, so that the modules of the next one are in the compile
 * cache: `src/runtime/compile-cache.ts` says what for. Called by `setup.sh`.
 */
import { PrivateMemory } from '../src/memory/index.ts';
import { DataPlaneWorker } from '../src/runtime/index.ts';
import { COUNTERS_BYTES, MacTable, SWITCH_SCRATCH_BYTES } from '../src/switch/index.ts';

const scratch = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES);
const worker = new DataPlaneWorker({
  name: 'vring-warm',
  planeModule: new URL('../src/devices/net/net-plane.ts', import.meta.url),
  planeOptions: {
    macTable: MacTable.create().memory,
    counters: new SharedArrayBuffer(COUNTERS_BYTES),
    scratchAt: scratch.offset,
  },
  spinMs: 0,
  onEvent: () => undefined,
  onCrash: (error) => {
    throw error;
  },
});
await worker.counters();
await worker.close();
