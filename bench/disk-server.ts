/**
 * A disk over vhost-user as a process of a bench: `vring serve blk` with every kind of image that
 * is measured, and nothing around it.
 *
 *   node bench/disk-server.ts SOCKET QUEUES CORE null|memory BYTES
 *   node bench/disk-server.ts SOCKET QUEUES CORE file PATH [URING DIRECT]
 */
import { execFileSync } from 'node:child_process';
import { BLK_PLANE_MODULE, BlkDevice } from '../src/devices/blk/index.ts';
import { DataPlaneWorker, DeviceHost } from '../src/runtime/index.ts';
import {
  createMemoryImage,
  createNullImage,
  type DiskImage,
  openFileImage,
} from '../src/storage/index.ts';
import { BACKEND_PROTOCOL_FEATURES, BackendListener } from '../src/vhost-user/index.ts';

type Way = 'off' | 'auto' | 'on';
const [path, queuesText, core, kind, what, uring = 'auto', direct = 'auto'] = process.argv.slice(
  2,
) as [string, string, string, string, string, Way?, Way?];
const queues = Number(queuesText);

function openImage(): DiskImage {
  if (kind === 'null') return createNullImage(Number(what));
  if (kind === 'memory') return createMemoryImage(Number(what));
  return openFileImage({ path: what!, uring, direct, lock: false });
}

const image = openImage();
const { sizeBytes, readOnly } = image;
const shape = { sizeBytes, readOnly, queues, blockBytes: 512, packed: true, iommu: false };
const device = new BlkDevice(shape);
const worker = new DataPlaneWorker({
  name: 'bench-blk',
  planeModule: BLK_PLANE_MODULE,
  planeOptions: null,
  spinMs: 0.05,
  onEvent: (event) => console.error(JSON.stringify(event)),
  onCrash: (error) => {
    console.error(error);
    process.exit(1);
  },
});
const host = new DeviceHost({
  worker,
  number: 0,
  device,
  protocolFeatures: BACKEND_PROTOCOL_FEATURES,
  queueNum: queues,
  onMtu: () => false,
  onChange: () => undefined,
});
await worker.request('addDisk', {
  device: 0,
  queues,
  serial: 'bench',
  cache: device.cache,
  image: image.spec,
});
const listener = new BackendListener({ path: path!, target: host, onEvent: () => undefined });
execFileSync('taskset', ['-a', '-c', '-p', core!, String(process.pid)], { stdio: 'ignore' });
console.log('ready', image.means ?? '');
process.on('SIGUSR1', () => {
  void worker.request('counters', {}).then((c) => console.error(JSON.stringify(c)));
  void worker.request('diskStatus', { device: 0 }).then((c) => console.error(JSON.stringify(c)));
});
process.once('SIGTERM', () => {
  void listener.close().then(async () => {
    await worker.close();
    image.close();
    process.exit(0);
  });
});
