/**
 * A process that serves disks with a volatile cache, over vhost-user, and cuts their power when it
 * is told so. Started by power-disks.ts with an IPC channel: the first argument is a JSON list of
 * `PowerDisk`; it sends 'ready', and answers `{ cutSeed }` with a list of what each cut did.
 */
import { BLK_PLANE_MODULE, type AddDisk, BlkDevice } from '../../src/devices/blk/index.ts';
import { DataPlaneWorker, DeviceHost, workerEnvironment } from '../../src/runtime/index.ts';
import { type DiskImage, openStack } from '../../src/storage/index.ts';
import { BACKEND_PROTOCOL_FEATURES, BackendListener } from '../../src/vhost-user/index.ts';
import { VHOST_USER_PROTOCOL_F_MTU } from '../../src/wire/vhost-user.ts';
import { featureSet } from '../../src/wire/virtio.ts';
import type { PowerDisk } from './power-disks.ts';

async function serve({ socket, file, queues }: PowerDisk): Promise<DiskImage> {
  const image = await openStack({
    stack: [
      { kind: 'fault', cache: 'volatile' },
      { kind: 'file', path: file },
    ],
    environment: workerEnvironment(true),
  });
  const { sizeBytes, spec } = image;
  const shape = { sizeBytes, readOnly: false, queues, blockBytes: 512, packed: true, iommu: false };
  const device = new BlkDevice(shape);
  const worker = new DataPlaneWorker({
    name: 'power-blk',
    planeModule: BLK_PLANE_MODULE,
    planeOptions: null,
    spinMs: 0.05,
    onEvent: (event) => host.planeEvent(event),
    onCrash: (error) => {
      throw error;
    },
  });
  const host: DeviceHost = new DeviceHost({
    worker,
    number: 0,
    device,
    protocolFeatures: BACKEND_PROTOCOL_FEATURES & ~featureSet(VHOST_USER_PROTOCOL_F_MTU),
    queueNum: queues,
    onMtu: () => false,
    onChange: () => undefined,
  });
  const add: AddDisk = { device: 0, queues, serial: '', cache: device.cache, image: spec };
  await worker.request('addDisk', add);
  const listener = new BackendListener({ path: socket, target: host, onEvent: () => undefined });
  process.once('exit', () => void listener.close());
  return image;
}

const disks = JSON.parse(process.argv[2]!) as PowerDisk[];
const images = await Promise.all(disks.map(serve));
process.on('message', ({ cutSeed }: { readonly cutSeed: number }) => {
  const cuts = images.map((image, i) => image.control('cut', { seed: cutSeed + i }));
  void Promise.all(cuts).then((results) => process.send!(results));
});
process.on('disconnect', () => process.exit(1)); // whoever started us is gone
process.send!('ready');
