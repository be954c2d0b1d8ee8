/**
 * Offloads and the control queue between our own guests on `vring switch`. Debian's QEMU and DPDK
 * offer neither UDP segmentation (USO) nor a control queue over vhost-user: here they are shown.
 */
import { deepEqual, equal, ok, rejects } from 'node:assert/strict';
import { test } from 'node:test';
import {
  NO_OFFLOAD,
  connectNetGuest,
  runTraffic,
  type GsoKind,
  type TrafficReport,
} from '../../src/guest/index.ts';
import type { PortStatus } from '../../src/daemon/switch-types.ts';
import {
  VIRTIO_NET_CTRL_RX_ALLMULTI,
  VIRTIO_NET_CTRL_RX_NOBCAST,
  VIRTIO_NET_CTRL_RX_PROMISC,
} from '../../src/wire/virtio-net.ts';
import { Scratch, waitFor } from '../peers/scratch.ts';
import { Host, featuresOf, ip4, macOf, runVring } from '../peers/software-guest.ts';
import { checkSegment } from '../peers/checksums.ts';
import { startSwitch, vring, type SwitchProcess } from '../peers/switch.ts';

/** 28 segments of 1400 bytes, and one that is shorter. */
const FRAMES = 30;
const SEGMENTS = 29;
const SIZE_BYTES = 40_000;
const KINDS: readonly Exclude<GsoKind, 'none'>[] = ['tcp4', 'tcp6', 'udp4', 'udp6'];
/** So many buffers that nothing is lost for want of one, whenever the receiver gets its core. */
const RING = { ringSize: 1024, notify: 'manual' } as const;

/** Sends FRAMES frames from the port at `socket` to host 2. */
async function send(
  socket: string,
  gso: GsoKind,
  packed: boolean,
  sizeBytes = SIZE_BYTES,
  gsoSize = 1400,
): Promise<TrafficReport> {
  const guest = await connectNetGuest({ socket, mac: macOf(1), packed, ...RING });
  try {
    const generate = { sizeBytes, targetMac: macOf(2), gso, gsoSize, frames: FRAMES };
    return await runTraffic({ guest, generate });
  } finally {
    await guest.close();
  }
}

async function countersOf(vswitch: SwitchProcess, name: string) {
  const { counters } = await vswitch.port(name);
  return (counter: string): number => counters[counter] ?? -1;
}

for (const packed of [false, true]) {
  const ring = packed ? 'packed' : 'split';

  test(`large frames between guests that both negotiated them, ${ring}`, async (t) => {
    await using scratch = new Scratch();
    const vswitch = await startSwitch(scratch, { a: '', b: '' });
    const socket = scratch.path('b');
    for (const features of ['+mrg', '-mrg']) {
      for (const kind of KINDS) {
        await t.test(`${kind} passes unsegmented, receiver ${features}`, async () => {
          await using own = new Scratch();
          const options = { socket, mac: macOf(2), packed, ...RING, ...featuresOf(features) };
          const guest = own.own(await connectNetGuest(options));
          guest.announce();
          const before = await countersOf(vswitch, 'b');
          const stop = new AbortController();
          const sink = runTraffic({ guest, signal: stop.signal, verifyEvery: 1 });
          await send(scratch.path('a'), kind, packed);
          await waitFor('all frames', 5000, async () => {
            return (await countersOf(vswitch, 'b'))('txFrames') >= before('txFrames') + FRAMES;
          });
          stop.abort();
          const { received, records } = await sink;
          deepEqual([received.frames, received.bytes], [FRAMES, FRAMES * SIZE_BYTES]);
          deepEqual([records.good, records.verified], [FRAMES * SEGMENTS, FRAMES * SEGMENTS]);
          deepEqual([records.lost, records.corrupt, records.foreign], [0, 0, 0]);
          equal((await countersOf(vswitch, 'b'))('gsoSegmented'), 0);
        });
      }
    }
  });

  test(`large frames to a guest that did not negotiate them, ${ring}`, async (t) => {
    await using scratch = new Scratch();
    const vswitch = await startSwitch(scratch, { a: '', b: '' });
    for (const [features, finishes] of [
      ['-tso,-uso', false],
      ['-tso,-uso,-guest_csum', true],
      ['-tso,-uso,-guest_csum,-mrg', true],
    ] as const) {
      for (const kind of KINDS) {
        const how = finishes ? 'with right checksums' : 'with checksums left to it';
        await t.test(`${kind} arrives in segments ${how}, receiver ${features}`, async () => {
          await using own = new Scratch();
          const options = { socket: scratch.path('b'), mac: macOf(2), packed, ringSize: 1024 };
          const guest = own.own(await connectNetGuest({ ...options, ...featuresOf(features) }));
          const sizes: number[] = [];
          const wrong: string[] = [];
          guest.onFrame = (frame, offload) => {
            sizes.push(frame.length);
            if (offload.gsoType !== 0) wrong.push(`gso type ${offload.gsoType}`);
            if (offload.needsCsum === finishes) wrong.push(`needsCsum ${offload.needsCsum}`);
            const problem = checkSegment(frame, { kind, summed: finishes });
            if (problem !== null) wrong.push(problem);
          };
          guest.announce();
          const before = await countersOf(vswitch, 'b');
          await send(scratch.path('a'), kind, packed);
          await waitFor('all segments', 5000, () => sizes.length >= FRAMES * SEGMENTS);
          deepEqual([...new Set(wrong)], []);
          equal(sizes.length, FRAMES * SEGMENTS);
          ok(sizes.every((size) => size <= 1514));
          const after = await countersOf(vswitch, 'b');
          equal(after('gsoSegmented') - before('gsoSegmented'), FRAMES);
          equal(after('gsoSegments') - before('gsoSegments'), FRAMES * SEGMENTS);
        });
      }
    }

    for (const kind of KINDS) {
      await t.test(`${kind}: only the checksum is missing, and completed`, async () => {
        await using own = new Scratch();
        const options = { socket: scratch.path('b'), mac: macOf(2), packed };
        const off = featuresOf('-tso,-uso,-guest_csum');
        const guest = own.own(await connectNetGuest({ ...options, ...off }));
        const problems: (string | null)[] = [];
        guest.onFrame = (frame) => problems.push(checkSegment(frame, { kind, summed: true }));
        guest.announce();
        const before = await countersOf(vswitch, 'b');
        // One segment exactly: 14 + 20 or 40 + 8 or 20 bytes of headers, and a payload.
        const headers = 14 + (kind.endsWith('4') ? 20 : 40) + (kind.startsWith('tcp') ? 20 : 8);
        await send(scratch.path('a'), kind, packed, headers + 200, 200);
        await waitFor('all frames', 5000, () => problems.length >= FRAMES);
        deepEqual(
          problems,
          Array.from({ length: FRAMES }, () => null),
        );
        const after = await countersOf(vswitch, 'b');
        equal(after('csumCompleted') - before('csumCompleted'), FRAMES);
        equal(after('gsoSegmented'), before('gsoSegmented'));
      });
    }
  });
}

test('`vring guest net pps --gso` and sink say the same', async () => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: '', b: '' });
  const guest = await connectNetGuest({ socket: scratch.path('b'), mac: macOf(2), ...RING });
  scratch.own(guest).announce();
  const stop = new AbortController();
  const sink = runTraffic({ guest, signal: stop.signal });
  const pps = ['pps', '--gso', 'udp4', '--size', '30000', '--rate', '100', '--seconds', '0.5'];
  const own = ['guest', 'net', '--json', '--socket', scratch.path('a')];
  const { status, out } = await runVring(...own, ...pps, '--to', macOf(2));
  equal(status, 0);
  const { sent } = JSON.parse(out) as { sent: { frames: number; bytes: number } };
  await waitFor('all frames', 3000, async () => {
    return (await countersOf(vswitch, 'b'))('txFrames') >= sent.frames;
  });
  stop.abort();
  const { received, records } = await sink;
  ok(sent.frames > 0);
  deepEqual([received.frames, received.bytes], [sent.frames, sent.bytes]);
  equal(records.lost + records.corrupt, 0);
});

/** An unfinished frame of 60 bytes, maybe tagged. */
function frameTo(target: readonly number[], tag: number | null = null): Uint8Array {
  const frame = new Uint8Array(60);
  frame.set(target);
  frame.set([2, 0, 0, 0, 0, 1], 6);
  frame.set(tag === null ? [0x88, 0xb5] : [0x81, 0, tag >> 8, tag & 255, 0x88, 0xb5], 12);
  return frame;
}

test('control queue: what the driver asks for takes effect in the switch', async (t) => {
  for (const packed of [false, true]) {
    await t.test(packed ? 'packed' : 'split', async (ring) => {
      await using scratch = new Scratch();
      const vswitch = await startSwitch(scratch, {
        a: ',trunk=all,native=1',
        c: ',trunk=all,native=1',
      });
      const a = scratch.own(await Host.join(scratch.path('a'), 1));
      const join = () => Host.join(scratch.path('c'), 2, { packed, features: '+ctrl_vq' });
      let c = await join();
      const control = () => c.guest.control!;

      /** Whether a frame arrives; else it is counted as filtered. */
      const arrives = async (target: readonly number[], tag: number | null = null) => {
        const before = await countersOf(vswitch, 'c');
        ok(a.guest.send(frameTo(target, tag), NO_OFFLOAD));
        return waitFor('the fate of a frame', 3000, async () => {
          const after = await countersOf(vswitch, 'c');
          if (after('txFrames') > before('txFrames')) return { arrived: true };
          return after('txDropFiltered') > before('txDropFiltered') ? { arrived: false } : null;
        }).then(({ arrived }) => arrived);
      };
      const OWN = [2, 0, 0, 0, 0, 2];
      const OTHER = [2, 0, 0, 0, 9, 9];
      const GROUP = [0x33, 0x33, 0, 0, 9, 9];
      const ALL = [255, 255, 255, 255, 255, 255];

      await ring.test('RX mode and MAC address', async () => {
        ok(await arrives(OTHER), 'promiscuous at first');
        await control().setMac(macOf(2));
        await control().setRxMode(VIRTIO_NET_CTRL_RX_PROMISC, false);
        equal(await arrives(OTHER), false);
        ok(await arrives(OWN));
        ok(await arrives(ALL));
        equal(await arrives(GROUP), false);
        await control().setRxMode(VIRTIO_NET_CTRL_RX_ALLMULTI, true);
        ok(await arrives(GROUP));
        await control().setRxMode(VIRTIO_NET_CTRL_RX_NOBCAST, true);
        equal(await arrives(ALL), false);
        await control().setMac('02:00:00:00:09:09');
        ok(await arrives(OTHER), 'the address is another one now');
        equal(await arrives(OWN), false);
      });

      await ring.test('MAC table', async () => {
        await control().setMacTable([macOf(2)], []);
        ok(await arrives(OWN));
        await control().setMacTable([], []);
        equal(await arrives(OWN), false);
      });

      await ring.test('a session of its own starts promiscuous again', async () => {
        await c.close();
        c = await join();
        ok(await arrives([2, 0, 0, 0, 7, 7]));
      });

      await ring.test('VLAN table', async () => {
        ok(await arrives(ALL, 20));
        await control().setVlan(10, true);
        equal(await arrives(ALL, 20), false);
        ok(await arrives(ALL, 10));
        ok(await arrives(ALL), 'untagged');
        await control().setVlan(10, false);
        equal(await arrives(ALL, 10), false);
      });

      await ring.test('commands without sense are refused', async () => {
        const code = { code: 'ERR_VRING_GUEST_CONTROL_REFUSED' };
        await rejects(control().setVlan(5000, true), code);
        await rejects(control().setMac('01:00:00:00:00:02'), code);
        await rejects(control().setPairs(2), code);
        await rejects(control().command(99, 0, new Uint8Array(1)), code);
        ok(await c.hears(ip4(1)), 'and the port goes on');
      });
      await c.close();
    });
  }
});

test('control queue: the driver chooses how many queue pairs receive', async () => {
  await using scratch = new Scratch();
  const vswitch = await startSwitch(scratch, { a: '', c: ',queues=4' });
  const options = { queuePairs: 4, features: '+ctrl_vq', ...RING };
  const c = scratch.own(await Host.join(scratch.path('c'), 2, options));
  const a = scratch.own(await Host.join(scratch.path('a'), 1, RING));
  c.guest.announce();
  const chains = (port: PortStatus): number[] =>
    port.queues
      .filter(({ name }) => name.startsWith('receiveq'))
      .map(({ counters }) => counters['chains'] ?? -1);
  const used = async (): Promise<boolean[]> => {
    const before = await vswitch.port('c');
    const generate = { sizeBytes: 100, targetMac: macOf(2), flows: 64, frames: 128 };
    await runTraffic({ guest: a.guest, generate });
    const after = await waitFor('all frames', 3000, async () => {
      const port = await vswitch.port('c');
      return port.counters['txFrames']! >= before.counters['txFrames']! + 128 ? port : null;
    });
    const first = chains(before);
    return chains(after).map((count, i) => count > first[i]!);
  };
  const pairs = async (count: number): Promise<boolean[]> => {
    await c.guest.control!.setPairs(count);
    return used();
  };
  deepEqual(await used(), [true, true, true, true]);
  deepEqual(await pairs(1), [true, false, false, false]);
  deepEqual(await pairs(3), [true, true, true, false]);
  await rejects(pairs(5), { code: 'ERR_VRING_GUEST_CONTROL_REFUSED' });
  deepEqual(await pairs(4), [true, true, true, true]);
  const names = (await vswitch.port('c')).queues.map(({ name }) => name);
  equal(names.at(-1), 'controlq');
});

test('link and configuration space', async (t) => {
  await using scratch = new Scratch();
  const mac = '52:54:00:00:00:77';
  const vswitch = await startSwitch(scratch, { a: '', b: `,mtu=9000,mac=${mac},queues=2` });
  const a = scratch.own(await Host.join(scratch.path('a'), 1));
  const b = await Host.join(scratch.path('b'), 2);
  const link = (state: string) =>
    vring('port', 'set', 'b', '--link', state, '--control', vswitch.control);

  await t.test('a link that is down carries nothing, and heals', async () => {
    ok(await a.hears(ip4(2)));
    await link('down');
    const down = await vswitch.port('b');
    deepEqual([down.state, down.linkUp], ['down', false]);
    equal(await a.hears(ip4(2), 56, 300), false);
    equal(await b.hears(ip4(1), 56, 300), false);
    equal(down.counters['txFrames'], (await vswitch.port('b')).counters['txFrames']);
    await link('up');
    equal((await vswitch.port('b')).state, 'up');
    ok(await a.hears(ip4(2)));
    ok(await b.hears(ip4(1)));
    equal((await vswitch.port('b')).sessions, 1);
  });

  await t.test('the device announces MAC address, MTU, queue pairs and link', async () => {
    await b.close();
    const info = async (): Promise<unknown> => {
      const { out } = await runVring(
        'guest',
        'net',
        '--socket',
        scratch.path('b'),
        '--json',
        'info',
      );
      return (JSON.parse(out) as { config: unknown }).config;
    };
    const config = { mac, linkUp: true, announce: false, maxVirtqueuePairs: null, mtu: 9000 };
    deepEqual(await info(), config);
    await link('down');
    deepEqual(await info(), { ...config, linkUp: false });
    await link('up');
    const two = await connectNetGuest({ socket: scratch.path('b'), queuePairs: 2 });
    deepEqual(two.config, { ...config, maxVirtqueuePairs: 2 });
    equal(two.mac, mac);
    await two.close();
  });

  await t.test('a front-end may lower the MTU, and longer frames are dropped', async () => {
    const low = await Host.join(scratch.path('b'), 3, { mtu: 1000 });
    equal((await vswitch.port('b')).mtu, 1000);
    ok(await a.hears(ip4(3), 900));
    equal(await a.hears(ip4(3), 1200, 300), false);
    ok((await vswitch.port('b')).counters['txDropMtu']! > 0);
    await low.close();
    await waitFor('the configured MTU', 3000, async () => {
      return (await vswitch.port('b')).mtu === 9000;
    });
    await rejects(Host.join(scratch.path('b'), 3, { mtu: 9001 }), { code: 'ERR_VRING_GUEST_MTU' });
  });
});
