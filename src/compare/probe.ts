/**
 * The guest of one round, as a process of its own: every path starts with the same cold JIT, and
 * its threads are the guest's alone. Argument: a ProbeOrder as JSON; prints Figures as JSON.
 */
import { messageOf } from '../base/errors.ts';
import { connectNetGuest } from '../guest/index.ts';
import { runWorkload } from './workload.ts';

export type ProbeOrder = {
  readonly backend: string;
  readonly devicePids: readonly number[];
  readonly sizes: readonly number[];
  readonly seconds: number;
  readonly window: number;
  readonly trips: number;
};

const order = JSON.parse(process.argv[2] ?? '{}') as ProbeOrder;
try {
  const connect = (notify: 'manual' | 'interrupt'): ReturnType<typeof connectNetGuest> =>
    connectNetGuest({ backend: order.backend, notify });
  const figures = await runWorkload({ ...order, connect });
  process.stdout.write(`${JSON.stringify(figures)}\n`);
} catch (error) {
  process.stderr.write(`${messageOf(error)}\n`);
  process.exitCode = 1;
}
