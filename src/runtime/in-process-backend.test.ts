/** The first contract over the second: what a target is told, and what a front-end is refused. */
import assert from 'node:assert/strict';
import { openSync, closeSync } from 'node:fs';
import { beforeEach, test } from 'node:test';
import { GuestMemory } from '../memory/index.ts';
import { createEventfd, createMemfd, openFdCount } from '../sys/index.ts';
import type { BackendTarget, FrontendRequests, StartVring } from '../vhost-user/index.ts';
import { VHOST_F_LOG_ALL, VHOST_USER_PROTOCOL_F_CONFIG } from '../wire/vhost-user.ts';
import { VHOST_USER_PROTOCOL_F_LOG_SHMFD } from '../wire/vhost-user.ts';
import { featureSet, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1 } from '../wire/virtio.ts';
import { InProcessBackend, type InProcessOptions } from './in-process-backend.ts';

const FEATURES = featureSet(VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM);
const PROTOCOL = featureSet(VHOST_USER_PROTOCOL_F_LOG_SHMFD, VHOST_USER_PROTOCOL_F_CONFIG);
const SIZE = 16;

/** Remembers what it is told. */
class Target implements BackendTarget {
  readonly features = FEATURES;
  readonly protocolFeatures = PROTOCOL;
  readonly queueCount = 2;
  readonly queueNum = 1;
  readonly queueSizeMax = 256;
  readonly said: string[] = [];
  readonly started: StartVring[] = [];
  requests: FrontendRequests | null = null;
  status = 0;
  base = 7;

  sessionOpened(requests: FrontendRequests): void {
    this.requests = requests;
  }
  setFeatures(acked: bigint): void {
    this.said.push(`features ${acked.toString(16)}`);
  }
  setProtocolFeatures(acked: bigint): void {
    this.said.push(`protocol ${acked.toString(16)}`);
  }
  async setMemTable(): Promise<void> {
    this.said.push('memory');
  }
  async startVring(index: number, vring: StartVring): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.said.push(`start ${index}`);
    this.started[index] = vring;
  }
  async stopVring(index: number): Promise<number> {
    this.said.push(`stop ${index}`);
    return this.base;
  }
  async setVringEnabled(index: number, enabled: boolean): Promise<void> {
    this.said.push(`${enabled ? 'enable' : 'disable'} ${index}`);
  }
  async setVringCall(): Promise<void> {}
  async setVringErr(): Promise<void> {}
  getConfig(offset: number, sizeBytes: number): Uint8Array | null {
    return offset + sizeBytes <= 4 ? new Uint8Array(sizeBytes).fill(offset) : null;
  }
  setConfig(offset: number): boolean {
    return offset === 0;
  }
  async setStatus(status: number): Promise<void> {
    this.status = status;
  }
  getStatus(): number {
    return this.status;
  }
  setMtu(): boolean {
    return true;
  }
  async updateIotlb(): Promise<void> {
    this.said.push('iotlb');
  }
  async sessionClosed(): Promise<void> {
    this.said.push('closed');
  }
}

let target: Target;
beforeEach(() => (target = new Target()));

const open = (options: Partial<InProcessOptions> = {}): Promise<InProcessBackend> =>
  InProcessBackend.open({ description: 'in-process:test', target, ...options });

/** Everything of ring 0 but the kick. */
async function prepare(backend: InProcessBackend, memory: GuestMemory, at = 0): Promise<void> {
  const start = BigInt(memory.baseUva + at);
  await backend.setFeatures(featureSet(VIRTIO_F_VERSION_1));
  await backend.setMemTable([memory.backendRegion()]);
  await backend.setVringNum(0, SIZE);
  await backend.setVringBase(0, 3);
  const areas = { descUva: start, availUva: start + 512n, usedUva: start + 1024n };
  await backend.setVringAddr(0, areas);
}

test('a ring starts when it is complete, where the memory is, and stops with its base', async () => {
  const before = openFdCount();
  const backend = await open();
  {
    using memory = GuestMemory.create(1 << 16, { baseGpa: 0x10000 });
    using kick = createEventfd('kick');
    using call = createEventfd('call');
    assert.equal(await backend.getFeatures(), FEATURES | featureSet(VHOST_F_LOG_ALL));
    assert.equal(await backend.getQueueNum(), 2);
    await prepare(backend, memory, 4096);
    assert.equal(target.started.length, 0);
    await backend.setVringEnable(0, true);
    await backend.setVringKick(0, kick.number);
    await backend.setVringCall(0, call.number);
    const { size, base, descOffset, usedOffset, kick: kickFd } = target.started[0]!;
    assert.deepEqual([size, base, usedOffset - descOffset], [SIZE, 3, 1024]);
    assert.notEqual(kickFd!.number, kick.number, 'a descriptor of its own');
    assert.equal(await backend.getVringBase(0), 7);
    assert.equal(await backend.getVringBase(0), 7, 'and again');
    await backend.setStatus(15);
    assert.equal(await backend.getStatus(), 15);
  }
  await backend.close();
  await backend.close();
  assert.equal(await backend.closed, null);
  assert.equal(target.said.at(-1), 'closed');
  assert.equal(openFdCount(), before);
});

test('calls that nobody waits for are carried out one after the other', async () => {
  const backend = await open();
  using memory = GuestMemory.create(1 << 16);
  using kick = createEventfd('kick');
  await prepare(backend, memory);
  target.said.length = 0;
  const calls = [backend.setVringKick(0, kick.number), backend.getVringBase(0), backend.close()];
  await Promise.all(calls);
  assert.deepEqual(target.said, ['start 0', 'stop 0', 'closed']);
});

test('what a front-end gets wrong is named, and the session goes on', async () => {
  const before = openFdCount();
  const backend = await open();
  {
    using memory = GuestMemory.create(1 << 16);
    using kick = createEventfd('kick');
    const file = openSync('/dev/null', 'r');
    await prepare(backend, memory);
    const wrong: [Promise<unknown>, string, RegExp][] = [
      [backend.setFeatures(1n << 5n), 'ERR_VRING_FEATURES', /^in-process:test: .*not offered/],
      [backend.setVringNum(9, 16), 'ERR_VRING_RING_INDEX', /this device has 2 vrings/],
      [backend.setVringNum(0, 512), 'ERR_VRING_RING_SIZE', /at most 256/],
      [backend.setVringKick(0, file), 'ERR_VRING_MESSAGE_FDS', /expected an eventfd/],
      [backend.getConfig(2, 4), 'ERR_VRING_CONFIG_RANGE', /bytes 2 to 6/],
      [backend.setConfig(2, new Uint8Array(1)), 'ERR_VRING_CONFIG_RANGE', /cannot be written/],
    ];
    for (const [call, code, message] of wrong) await assert.rejects(call, { code, message });
    closeSync(file);
    const nowhere = { descUva: 16n, availUva: 512n, usedUva: 1024n };
    await backend.setVringAddr(0, nowhere);
    await assert.rejects(backend.setVringKick(0, kick.number), {
      code: 'ERR_VRING_RING_ADDRESS',
      message: /^in-process:test: vrings\[0\]\.desc_user_addr: 0x10 .* is not in shared memory/,
    });
    assert.equal(target.started.length, 0);
    const start = BigInt(memory.baseUva);
    const there = { descUva: start, availUva: start + 512n, usedUva: start + 1024n };
    await backend.setVringAddr(0, there);
    assert.equal(target.started.length, 1, 'put right, it starts');
  }
  await backend.close();
  await assert.rejects(backend.setVringNum(0, 16), { code: 'ERR_VRING_CLOSED' });
  assert.equal(openFdCount(), before);
});

test('misses and changes of the configuration are calls', async () => {
  const misses: string[] = [];
  let changes = 0;
  const backend = await open({
    events: {
      iotlbMiss: (iova, write) => void misses.push(`${iova.toString(16)} ${write}`),
      configChanged: () => void changes++,
    },
  });
  target.requests!.iotlbMiss(0x5123, true);
  target.requests!.iotlbMiss(0x5200, true);
  assert.deepEqual(misses, ['5000 true'], 'one for a page');
  assert.ok(target.requests!.can(VHOST_USER_PROTOCOL_F_CONFIG));
  await target.requests!.configChanged();
  assert.equal(changes, 1);
  using memory = GuestMemory.create(1 << 16);
  await backend.setFeatures(FEATURES);
  await backend.setMemTable([memory.backendRegion()]);
  const mapping = { iova: 0x5000n, sizeBytes: 4096n, permissions: 3 };
  await backend.iotlb!.update({ ...mapping, userAddr: BigInt(memory.baseUva) });
  assert.ok(target.said.includes('iotlb'));
  const wrong = backend.iotlb!.update({ ...mapping, userAddr: 1n });
  await assert.rejects(wrong, { code: 'ERR_VRING_IOTLB' });
  await backend.close();
});

test('a dirty log: rings are told where it is', async () => {
  const backend = await open();
  using memory = GuestMemory.create(1 << 16);
  using log = createMemfd('log', 4096);
  using kick = createEventfd('kick');
  await prepare(backend, memory);
  await backend.dirtyLog!.setLogBase(log.number, 4096);
  await backend.setFeatures(featureSet(VIRTIO_F_VERSION_1, VHOST_F_LOG_ALL));
  await backend.setVringKick(0, kick.number);
  assert.equal(target.started[0]!.log?.sizeBytes, 4096);
  await backend.close();
});

test('the end of what is behind it is the end of the back-end', async () => {
  let released = 0;
  const backend = await open({ release: async () => void released++ });
  await backend.fail(new Error('the plane is gone'));
  assert.match((await backend.closed)?.message ?? '', /the plane is gone/);
  await backend.close();
  assert.equal(released, 1);
});
