/**
 * A device for tests of everything that outlives a request: a vhost-user back-end of its own
 * process, whose requests finish out of order.
 *
 *     node test/peers/slow-device.ts --socket PATH [--queues N] [--hold MS] [--stall]
 *
 * A request is a readable buffer [u32 number, u32 milliseconds], little-endian, in its first
 * segment, and a writable one of at least eight bytes, into which the answer goes: [u32 number,
 * u32 pid]. It is held for so many milliseconds; 0 takes `--hold`, which is 0 unless said. With
 * `--stall` nothing is ever answered: requests stay in flight until the process is killed.
 *
 * Virtio device 42 (none in the specification) with split and packed rings, INDIRECT, EVENT_IDX,
 * IN_ORDER where `--in-order` says so (the holds must then not overtake), ACCESS_PLATFORM and a
 * legacy driver of the other byte order. Prints `ready` when it listens, and JSON lines for what
 * happens; SIGTERM ends it.
 */
import { parseArgs } from 'node:util';
import { DataPlaneWorker, DeviceHost } from '../../src/runtime/index.ts';
import { BACKEND_PROTOCOL_FEATURES, BackendListener } from '../../src/vhost-user/index.ts';
import { VHOST_USER_PROTOCOL_F_CROSS_ENDIAN } from '../../src/wire/vhost-user.ts';
import {
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_VERSION_1,
  VIRTIO_RING_F_EVENT_IDX,
  VIRTIO_RING_F_INDIRECT_DESC,
  featureSet,
} from '../../src/wire/virtio.ts';

const { values } = parseArgs({
  options: {
    socket: { type: 'string' },
    queues: { type: 'string', default: '1' },
    hold: { type: 'string', default: '0' },
    stall: { type: 'boolean', default: false },
    'in-order': { type: 'boolean', default: false },
  },
});
if (values.socket === undefined) throw new Error('--socket PATH is missing');

const say = (what: Record<string, unknown>): void => console.log(JSON.stringify(what));

const worker = new DataPlaneWorker({
  name: 'slow-device',
  planeModule: new URL('./slow-plane.ts', import.meta.url),
  planeOptions: { stall: values.stall, holdMs: Number(values.hold) },
  spinMs: 0.05,
  onEvent: (event) => {
    say({ event: event.kind, index: event.index });
    host.planeEvent(event);
  },
  onCrash: (error) => {
    throw error;
  },
});

const host = new DeviceHost({
  worker,
  number: 0,
  device: {
    deviceId: 42,
    queueCount: Number(values.queues),
    queueSizeMax: 32768,
    features: featureSet(
      VIRTIO_F_VERSION_1,
      VIRTIO_F_RING_PACKED,
      VIRTIO_F_ACCESS_PLATFORM,
      VIRTIO_RING_F_INDIRECT_DESC,
      VIRTIO_RING_F_EVENT_IDX,
      ...(values['in-order'] ? [VIRTIO_F_IN_ORDER] : []),
    ),
    readConfig: (_offset, sizeBytes) => new Uint8Array(sizeBytes),
    writeConfig: () => false,
  },
  protocolFeatures: BACKEND_PROTOCOL_FEATURES | (1n << BigInt(VHOST_USER_PROTOCOL_F_CROSS_ENDIAN)),
  queueNum: Number(values.queues),
  onMtu: () => false,
  onChange: () => {},
});

const listener = new BackendListener({
  path: values.socket,
  target: host,
  onEvent: (event) => {
    const reason = 'reason' in event ? (event.reason?.message ?? null) : null;
    say({ event: event.kind, reason });
  },
});

process.once('SIGTERM', async () => {
  await listener.close();
  await worker.close();
});
console.log('ready');
