/** A net device over VDUSE: the host, its rings and a data plane, with the kernel played. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { type TestContext, test } from 'node:test';
import { GuestMemory, PrivateMemory } from '../../memory/index.ts';
import { FakeVduseKernel } from '../../runtime/fake-vduse.ts';
import {
  DataPlaneWorker,
  DeviceHost,
  type VduseEvent,
  VduseHost,
  VduseInflight,
} from '../../runtime/index.ts';
import { COUNTERS_BYTES, MacTable, SWITCH_SCRATCH_BYTES } from '../../switch/index.ts';
import { arena, openFdCount } from '../../sys/index.ts';
import { vduseFeatures } from '../../vhost-kernel/index.ts';
import {
  addChains,
  DriverBatch,
  DriverQueue,
  publish,
  reapUsed,
  ringLayout,
  UsedBatch,
} from '../../virtqueue/driver/index.ts';
import * as virtio from '../../wire/virtio.ts';
import {
  type AddNetPort,
  NET_PLANE_MODULE,
  NetDevice,
  type NetPortStatus,
  PARKED_FRAMES_BYTES,
} from './index.ts';

const SIZE = 64;
const RING_BYTES = 16384;
const BUFFER_BYTES = 2048;
const IOVA = 0x40_0000;
const MEMORY_BYTES = 1024 * 1024;
const ALL_STATUS = [1, 3, 11, 15];
const { VIRTIO_CONFIG_S_DRIVER_OK: DRIVER_OK } = virtio;

/** What serves the device: one "process". */
class Server {
  readonly device: NetDevice;
  readonly worker: DataPlaneWorker;
  readonly host: DeviceHost;
  readonly events: VduseEvent[] = [];
  readonly scratch = PrivateMemory.allocate(SWITCH_SCRATCH_BYTES);
  readonly parked = PrivateMemory.allocate(PARKED_FRAMES_BYTES);
  vduse: VduseHost | null = null;

  constructor() {
    this.device = new NetDevice({
      queuePairs: 1,
      mac: null,
      mtu: 1500,
      packed: true,
      mrgRxbuf: true,
      csum: true,
      tso: true,
      uso: true,
      iommu: false,
      controlQueue: true,
    });
    this.worker = new DataPlaneWorker({
      name: 'vduse-test',
      planeModule: NET_PLANE_MODULE,
      planeOptions: {
        macTable: MacTable.create({ ageingSeconds: 300, capacity: 64 }).memory,
        counters: new SharedArrayBuffer(COUNTERS_BYTES),
        scratchAt: this.scratch.offset,
      },
      spinMs: 0.05,
      onEvent: (event) => this.host.planeEvent(event),
      onCrash: (error) => assert.fail(error),
    });
    this.host = new DeviceHost({
      worker: this.worker,
      number: 0,
      device: this.device,
      protocolFeatures: 0n,
      queueNum: 1,
      onMtu: () => false,
      onChange: () => undefined,
    });
  }

  async start(kernel: FakeVduseKernel, resumed: boolean, inflight: VduseInflight | null = null) {
    const add: AddNetPort = {
      port: 0,
      settings: { vlan: { mode: 'access', vid: 1 }, macLimit: 10, reflect: true },
      queuePairs: 1,
      mtu: 1500,
      mac: null,
      linkUp: true,
      parkedAt: this.parked.offset,
    };
    await this.worker.request('addNetPort', add);
    this.vduse = await VduseHost.start({
      device: kernel.open(),
      features: vduseFeatures(1, this.device.features),
      target: this.host,
      configBytes: 12,
      resumed,
      inflight,
      onEvent: (event) => this.events.push(event),
    });
    return this;
  }

  /** The receive queue takes frames: those before its first kick are lost, as on any network. */
  async receives(): Promise<void> {
    for (let tries = 0; tries < 200; tries++) {
      const { vrings } = await this.worker.request<NetPortStatus>('portStatus', { port: 0 });
      if (vrings[0]?.started) return;
      await sleep(5);
    }
    assert.fail('the receive queue does not start');
  }

  /** kill -9: rings just stop, nothing is answered or closed in order. */
  async die(kernel: FakeVduseKernel): Promise<void> {
    const { connected } = kernel;
    await this.worker.close();
    connected?.close();
  }

  async close(): Promise<void> {
    await this.vduse?.close();
    await this.worker.request('removePort', { port: 0 });
    await this.worker.close();
    this.scratch.close();
    this.parked.close();
  }
}

/** The kernel's virtio-net driver, as far as rings go. */
class Driver {
  readonly kernel: FakeVduseKernel;
  readonly memory = GuestMemory.create(MEMORY_BYTES);
  readonly features: bigint;
  rings: DriverQueue[] = [];
  readonly batch = new DriverBatch();
  readonly used = new UsedBatch();

  constructor(kernel: FakeVduseKernel, packed: boolean) {
    this.kernel = kernel;
    this.features = virtio.featureSet(
      virtio.VIRTIO_F_VERSION_1,
      virtio.VIRTIO_F_ACCESS_PLATFORM,
      virtio.VIRTIO_RING_F_EVENT_IDX,
      ...(packed ? [virtio.VIRTIO_F_RING_PACKED] : []),
    );
  }

  get packed(): boolean {
    return virtio.hasFeature(this.features, virtio.VIRTIO_F_RING_PACKED);
  }

  map(sizeBytes = MEMORY_BYTES): void {
    const { fd } = this.memory;
    this.kernel.mappings = [{ start: IOVA, sizeBytes, fd, fdOffset: 0, permissions: 3 }];
  }

  iova(offset: number): number {
    return IOVA + (offset - this.memory.offset);
  }

  setUpRings(): void {
    const layout = ringLayout(SIZE, this.packed);
    this.#taken = 0;
    this.rings = this.kernel.queues.map((queue, i) => {
      const at = this.memory.offset + i * RING_BYTES;
      arena().bytes.fill(0, at, at + RING_BYTES);
      Object.assign(queue, {
        size: SIZE,
        descIova: BigInt(this.iova(at)),
        driverIova: BigInt(this.iova(at + layout.availAt)),
        deviceIova: BigInt(this.iova(at + layout.usedAt)),
        base: this.packed ? virtio.PACKED_BASE_FRESH : 0,
        ready: true,
      });
      const config = {
        size: SIZE,
        packed: this.packed,
        eventIdx: true,
        indirect: false,
        inOrder: false,
        descOffset: at,
        availOffset: at + layout.availAt,
        usedOffset: at + layout.usedAt,
      };
      return new DriverQueue(config, arena().buffer);
    });
  }

  /** As virtio_vdpa's probe. */
  async probe(): Promise<void> {
    await this.kernel.setStatus(0);
    this.kernel.features = this.features;
    for (const status of ALL_STATUS) {
      if (status === 15) {
        this.map();
        this.setUpRings();
      }
      assert.ok(await this.kernel.setStatus(status), `status ${status}`);
    }
  }

  buffer(n: number): number {
    return this.memory.offset + 4 * RING_BYTES + n * BUFFER_BYTES;
  }

  post(count: number, from = 0): void {
    for (let n = from; n < from + count; n++) {
      this.#add(0, [], [{ gpa: this.iova(this.buffer(n)), len: BUFFER_BYTES }]);
    }
    this.kernel.kick(0);
  }

  /** A frame with `mark` in it, from buffer 32 + n. */
  send(n: number, mark: number): void {
    const at = this.buffer(32 + n);
    const frame = arena().bytes.subarray(at, at + 12 + 60);
    frame.fill(0);
    frame.set([2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0], 12);
    frame[12 + 30] = mark;
    this.#add(1, [{ gpa: this.iova(at), len: frame.length }], []);
    this.kernel.kick(1);
  }

  #add(ring: number, out: { gpa: number; len: number }[], into: { gpa: number; len: number }[]) {
    this.batch.clear();
    this.batch.addChain(out, into);
    assert.equal(addChains(this.rings[ring]!, this.batch, 0, 1), 1);
    publish(this.rings[ring]!);
  }

  /** Marks of the frames that arrived, in order; buffers are taken in the order of posting. */
  async receive(count: number): Promise<number[]> {
    const marks: number[] = [];
    for (let tries = 0; marks.length < count && tries < 400; tries++) {
      const got = reapUsed(this.rings[0]!, this.used, this.used.capacity);
      assert.ok(got >= 0, 'the device broke the ring');
      for (let i = 0; i < got; i++) marks.push(arena().bytes[this.buffer(this.#taken++) + 42]!);
      if (marks.length < count) await sleep(5);
    }
    return marks;
  }
  #taken = 0;

  reapSent(): number {
    return reapUsed(this.rings[1]!, this.used, this.used.capacity);
  }

  close(): void {
    this.memory.close();
    this.kernel.close();
  }
}

async function setUp(t: TestContext, packed = false) {
  const kernel = new FakeVduseKernel(3); // with the control queue, which stays unused
  kernel.queues.pop();
  const driver = new Driver(kernel, packed);
  const server = new Server();
  t.after(() => driver.close());
  return { kernel, driver, server };
}

/** The device has two queues where the control queue is masked: as `serve` makes it. */
function withoutControl(server: Server): Server {
  Object.defineProperty(server.host, 'queueCount', { value: 2 });
  return server;
}

for (const packed of [false, true]) {
  const format = packed ? 'packed' : 'split';

  test(`a driver probes, frames go and come (${format})`, async (t) => {
    const { kernel, driver, server } = await setUp(t, packed);
    await withoutControl(server).start(kernel, false);
    await driver.probe();
    assert.deepEqual(
      server.events.map((event) => event.kind),
      ['reset', 'driver-ok'],
    );
    driver.post(8);
    for (let i = 0; i < 8; i++) driver.send(i, i + 1);
    assert.deepEqual(await driver.receive(8), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert.equal(driver.reapSent(), 8);
    assert.equal(server.host.acked, driver.features & ~virtio.featureSet(33));
    await server.close();
    assert.equal(kernel.connected, null);
  });

  test(`a successor goes on where a dead process was (${format})`, async (t) => {
    const { kernel, driver, server } = await setUp(t, packed);
    await withoutControl(server).start(kernel, false);
    await driver.probe();
    driver.post(30);
    for (let i = 0; i < 5; i++) driver.send(i, i + 1);
    assert.deepEqual(await driver.receive(5), [1, 2, 3, 4, 5]);
    await server.die(kernel);
    for (let i = 5; i < 10; i++) driver.send(i, i + 1); // while nobody serves

    const second = await withoutControl(new Server()).start(kernel, true);
    assert.deepEqual(second.events, [{ kind: 'driver-ok', resumed: true }]);
    assert.deepEqual(await driver.receive(5), [6, 7, 8, 9, 10], 'each once, none lost');
    driver.send(10, 11);
    assert.deepEqual(await driver.receive(1), [11]);
    assert.equal(driver.reapSent(), 11);
    await second.close();
  });

  test(`a change of mappings stops the rings and goes on (${format})`, async (t) => {
    const { kernel, driver, server } = await setUp(t, packed);
    await withoutControl(server).start(kernel, false);
    await driver.probe();
    driver.post(30);
    driver.send(0, 1);
    assert.deepEqual(await driver.receive(1), [1]);
    // Everything goes, as vhost-vdpa does it; rings wait without their memory.
    kernel.mappings = [];
    assert.ok((await kernel.ask({ kind: 'update-iotlb', start: 0n, last: 2n ** 64n - 1n })).ok);
    driver.send(1, 2);
    await sleep(30);
    assert.equal(server.vduse!.isRunning, false);
    assert.match(
      JSON.stringify(server.events.map((e) => e.kind === 'problem' && e.error.message)),
      /waits/,
    );
    driver.map();
    assert.ok((await kernel.ask({ kind: 'update-iotlb', start: 0n, last: 2n ** 64n - 1n })).ok);
    assert.deepEqual(await driver.receive(1), [2]);
    await server.close();
  });

  test(`a position is told exactly, and the ring goes on (${format})`, async (t) => {
    const { kernel, driver, server } = await setUp(t, packed);
    await withoutControl(server).start(kernel, false);
    await driver.probe();
    driver.post(8);
    for (let i = 0; i < 3; i++) driver.send(i, i + 1);
    await driver.receive(3);
    const { ok, base } = await kernel.ask({ kind: 'queue-state', index: 1 });
    assert.ok(ok);
    assert.equal(base, packed ? 0x8003_8003 : 3);
    driver.send(3, 4);
    assert.deepEqual(await driver.receive(1), [4]);
    assert.equal((await kernel.ask({ kind: 'queue-state', index: 7 })).ok, false);
    await server.close();
  });
}

test('mappings that come later are looked up when a ring misses them', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  await driver.kernel.setStatus(0);
  kernel.features = driver.features;
  for (const status of [1, 3, 11]) await kernel.setStatus(status);
  driver.map(4 * RING_BYTES); // the rings alone, as a kernel driver has it before its first buffer
  driver.setUpRings();
  await kernel.setStatus(15);
  driver.map();
  driver.post(4);
  await server.receives();
  driver.send(0, 7);
  assert.deepEqual(await driver.receive(1), [7]);
  await server.close();
});

test('interrupts are made up for once the kernel lets us', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  await driver.probe();
  for (let tries = 0; tries < 100 && kernel.queues[1]!.interrupts === 0; tries++) await sleep(2);
  assert.deepEqual(
    kernel.queues.map(({ interrupts }) => interrupts),
    [1, 1],
  );
  await server.close();
});

test('a queue that becomes ready after DRIVER_OK starts at its first kick', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  await driver.kernel.setStatus(0);
  kernel.features = driver.features;
  for (const status of [1, 3, 11]) await kernel.setStatus(status);
  driver.map();
  driver.setUpRings();
  Object.assign(kernel.queues[1]!, { ready: false });
  await kernel.setStatus(15);
  driver.post(4);
  await server.receives();
  Object.assign(kernel.queues[1]!, { ready: true });
  driver.send(0, 9);
  assert.deepEqual(await driver.receive(1), [9]);
  await server.close();
});

test('requests of a dead process are answered by its successor', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  await driver.probe();
  await server.die(kernel);
  const reset = kernel.setStatus(0);
  const second = await withoutControl(new Server()).start(kernel, true);
  assert.ok(await reset);
  assert.deepEqual(
    second.events.map((event) => event.kind),
    ['driver-ok', 'reset'],
  );
  await driver.probe();
  driver.post(2);
  await second.receives();
  driver.send(0, 3);
  assert.deepEqual(await driver.receive(1), [3]);
  await second.close();
});

test('features that were not offered, or without translation, are refused', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  for (const features of [
    driver.features & ~virtio.featureSet(virtio.VIRTIO_F_ACCESS_PLATFORM),
    driver.features | virtio.featureSet(17), // CTRL_VQ: masked
  ]) {
    await kernel.setStatus(0);
    kernel.features = features;
    assert.ok(await kernel.setStatus(3));
    assert.equal(await kernel.setStatus(11), false);
  }
  await driver.probe();
  assert.ok((kernel.status & DRIVER_OK) !== 0, 'and a good driver works afterwards');
  await server.close();
});

test('rings that cannot be are refused at DRIVER_OK, and a reset heals', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  const wrongs = [{ size: 0 }, { size: 48 }, { size: 65535 }, { descIova: BigInt(IOVA) + 4n }];
  for (const wrong of wrongs) {
    await kernel.setStatus(0);
    kernel.features = driver.features;
    for (const status of [1, 3, 11]) await kernel.setStatus(status);
    driver.map();
    driver.setUpRings();
    Object.assign(kernel.queues[1]!, wrong);
    assert.equal(await kernel.setStatus(15), false, JSON.stringify(Object.keys(wrong)));
  }
  await driver.probe();
  driver.post(2);
  await server.receives();
  driver.send(0, 3);
  assert.deepEqual(await driver.receive(1), [3]);
  await server.close();
});

test('an address that is mapped nowhere is said, and a reset heals', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  await driver.probe();
  kernel.mappings = []; // the kernel forgot; what is known stays until it says so
  driver.map(MEMORY_BYTES / 2);
  assert.ok((await kernel.ask({ kind: 'update-iotlb', start: 0n, last: 2n ** 64n - 1n })).ok);
  // Buffers of the upper half are not mapped any more
  const far = driver.memory.offset + MEMORY_BYTES - BUFFER_BYTES;
  driver.batch.clear();
  driver.batch.addChain([{ gpa: driver.iova(far), len: 72 }], []);
  addChains(driver.rings[1]!, driver.batch, 0, 1);
  publish(driver.rings[1]!);
  kernel.kick(1);
  const isUnmapped = (event: VduseEvent) =>
    event.kind === 'problem' && event.error.code === 'ERR_VRING_VDUSE_UNMAPPED';
  for (let tries = 0; tries < 100 && !server.events.some(isUnmapped); tries++) await sleep(5);
  assert.ok(server.events.some(isUnmapped));
  await driver.probe();
  driver.post(2);
  await server.receives();
  driver.send(0, 3);
  await server.close();
});

test('a change of the configuration reaches the driver', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  await driver.probe();
  server.device.linkUp = false;
  await server.host.configChanged();
  assert.equal(kernel.configInterrupts, 1);
  assert.deepEqual([...kernel.config.subarray(6, 12)], [0, 0, 1, 0, 0xdc, 5]);
  await server.close();
});

test('a request of an unknown kind fails alone', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  assert.equal((await kernel.ask({ kind: 'unknown', type: 99 })).ok, false);
  await driver.probe();
  await server.close();
});

test('a device that the kernel calls broken is gone, once', async (t) => {
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  await driver.probe();
  kernel.broken = true;
  void kernel.ask({ kind: 'status', status: 15 });
  for (let tries = 0; tries < 100 && server.events.at(-1)?.kind !== 'gone'; tries++) await sleep(5);
  assert.equal(server.events.filter((event) => event.kind === 'gone').length, 1);
  kernel.broken = false;
  await server.close();
});

test('with a record, what a dead process had taken is done by its successor', async (t) => {
  const path = `/dev/shm/vring-test-${process.pid}/vduse.inflight`;
  const shape = { queueCount: 2, queueSizeMax: SIZE };
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false, VduseInflight.open(path, shape));
  await driver.probe();
  driver.post(20);
  await server.receives();
  for (let i = 0; i < 5; i++) driver.send(i, i + 1);
  assert.deepEqual(await driver.receive(5), [1, 2, 3, 4, 5]);
  await server.die(kernel);
  for (let i = 5; i < 9; i++) driver.send(i, i + 1);
  const again = VduseInflight.open(path, shape);
  assert.ok(again.knows(0) && again.knows(1));
  const second = await withoutControl(new Server()).start(kernel, true, again);
  assert.deepEqual(await driver.receive(4), [6, 7, 8, 9]);

  // Without its record nothing is guessed: the driver must reset.
  await second.die(kernel);
  const lost = VduseInflight.open(path, { ...shape, queueSizeMax: 2 * SIZE });
  assert.ok(!lost.knows(1), 'a file of another shape is emptied');
  const third = await withoutControl(new Server()).start(kernel, true, lost);
  const problems = third.events.flatMap((e) => (e.kind === 'problem' ? [e.error.code] : []));
  assert.deepEqual(problems, ['ERR_VRING_VDUSE_INFLIGHT']);
  await driver.probe();
  await third.close();
  VduseInflight.remove(path);
});

test('nothing is left open', async (t) => {
  const before = openFdCount();
  const { kernel, driver, server } = await setUp(t);
  await withoutControl(server).start(kernel, false);
  await driver.probe();
  driver.post(8);
  await server.receives();
  driver.send(0, 1);
  await driver.receive(1);
  await server.close();
  driver.close();
  assert.equal(openFdCount(), before);
});
