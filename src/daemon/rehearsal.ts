/**
 * A hand-over of a port that nobody needs, from this process to itself.
 *
 * What JavaScript runs for the first time it compiles first, and a hand-over runs once, on both
 * sides, while guests wait. Measured on 2 busy vCPUs with 4 ports: a pause of 42 to 57 ms without a
 * rehearsal, 10 ms (median; 8 to 22) with one on both sides. It takes its time before the pause.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { dupFd } from '../sys/index.ts';
import { VhostUserFrontend } from '../vhost-user/index.ts';
import { ReceivedFds, SentFds } from './hand-over-channel.ts';
import { HandOverStateSchema, parseBody } from './hand-over-format.ts';
import { RestingGuest } from './resting-guest.ts';
import type { SwitchPort } from './switch-port.ts';
import type { VhostUserPortConfig } from './switch-types.ts';

/** Split and packed in turn, about 6 ms each; more make nothing faster. */
const ROUNDS = Array.from({ length: 24 }, (_, i) => i % 2 === 1);

/** Makes a port under one of two numbers that no other port has, and takes it away again. */
export type Stage = {
  make(config: VhostUserPortConfig, which: 0 | 1): SwitchPort;
  /** Ends and frees the port. */
  strike(port: SwitchPort, which: 0 | 1): Promise<void>;
};

export async function rehearse(stage: Stage): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'vring-rehearsal-'));
  try {
    for (const packed of ROUNDS) await perform(stage, join(folder, 'socket'), packed);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function perform(stage: Stage, path: string, packed: boolean): Promise<void> {
  const config = configOf(path);
  const over = new AbortController();
  const front = VhostUserFrontend.listen(path, { signal: over.signal });
  front.catch(() => undefined); // whoever waits for it below is told
  const giver = stage.make(config, 0);
  const taker = stage.make(config, 1);
  try {
    await giver.open();
    await using guest = await RestingGuest.start(await front, packed);
    void guest;
    const planned = new SentFds();
    const plan = copyOf(giver.plan(planned));
    await within(planned, (fds) => taker.adopt(plan, fds));
    const last = new SentFds();
    const ports = [await giver.suspend(last)];
    const state = parseBody(
      HandOverStateSchema,
      'switch',
      copyOf({ stoppedAtMs: 0, ports, disks: [], adapters: [] }),
    );
    await within(last, (fds) => taker.restore(state.ports[0]!, fds));
    await taker.resume();
    await giver.surrender();
  } finally {
    over.abort();
    await stage.strike(giver, 0);
    await stage.strike(taker, 1);
  }
}

/** As if it had been sent. */
function copyOf<T>(value: T): T {
  return JSON.parse(JSON.stringify(value)) as T;
}

async function within(sent: SentFds, work: (fds: ReceivedFds) => Promise<void>): Promise<void> {
  const fds = new ReceivedFds(sent.numbers.map((number) => dupFd(number, 'rehearsal')));
  try {
    await work(fds);
  } finally {
    fds.close();
  }
}

function configOf(path: string): VhostUserPortConfig {
  return {
    kind: 'vhost-user',
    name: 'rehearsal',
    path,
    mode: 'client',
    socketOwner: null,
    socketMode: null,
    queuePairs: 1,
    mac: null,
    packed: true,
    mrgRxbuf: true,
    iommu: false,
    postcopy: false,
    vlan: { mode: 'access', vid: 1 },
    offload: { csum: true, tso: true, uso: true },
    mtu: 1500,
    reflect: false,
    macLimit: 1,
  };
}
