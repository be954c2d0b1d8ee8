/** A back-end without rings: records what the session asks of it, for tests and the fuzzer. */
import type { MemoryTable } from '../../memory/index.ts';
import type { Fd } from '../../sys/index.ts';
import type { BackendTarget, FrontendRequests, IotlbUpdate, StartVring } from '../target.ts';

/** VIRTIO_F_VERSION_1, ACCESS_PLATFORM, RING_PACKED, EVENT_IDX, INDIRECT_DESC, NET_F_MRG_RXBUF. */
export const FAKE_FEATURES =
  (1n << 32n) | (1n << 33n) | (1n << 34n) | (1n << 29n) | (1n << 28n) | (1n << 15n);

/** Wants everything there is; what it may have depends on its methods. */
const ALL_PROTOCOL_FEATURES = (1n << 23n) - 1n;

export class FakeTarget implements BackendTarget {
  readonly features: bigint = FAKE_FEATURES;
  readonly protocolFeatures: bigint = ALL_PROTOCOL_FEATURES;
  readonly queueCount: number;
  readonly queueNum: number;

  /** One line for each call, `startVring 0`. */
  readonly calls: string[] = [];
  readonly running = new Map<number, StartVring>();
  /** The fds of `setVringCall` and `setVringErr`, by `call 0`. */
  readonly calledWith = new Map<string, number>();
  readonly enabled = new Set<number>();
  readonly config: Uint8Array = Uint8Array.from({ length: 16 }, (_, i) => i);
  table: MemoryTable | null = null;
  status = 0;
  mtu = 1500;
  reasons: (Error | null)[] = [];
  /** What `stopVring` adds to the base: as if this many chains were taken. */
  progress = 0;
  /** Awaited by `stopVring`. */
  stopGate: Promise<void> = Promise.resolve();

  constructor(queueCount = 4) {
    this.queueCount = queueCount;
    this.queueNum = queueCount / 2;
  }

  setFeatures(acked: bigint): void {
    this.calls.push(`setFeatures 0x${acked.toString(16)}`);
  }

  setProtocolFeatures(acked: bigint): void {
    this.calls.push(`setProtocolFeatures 0x${acked.toString(16)}`);
  }

  async setMemTable(table: MemoryTable): Promise<void> {
    if (this.running.size > 0) throw new Error('the memory table changes under a running ring');
    this.table = table;
    this.calls.push(`setMemTable ${table.regions.length}`);
  }

  async startVring(index: number, vring: StartVring): Promise<void> {
    if (this.running.has(index)) throw new Error(`ring ${index} is started twice`);
    for (const fd of [vring.kick, vring.call, vring.err]) void fd?.number; // open, or it throws
    this.running.set(index, vring);
    this.calls.push(`startVring ${index}`);
  }

  async stopVring(index: number): Promise<number> {
    await this.stopGate;
    const vring = this.running.get(index);
    if (vring === undefined) throw new Error(`ring ${index} is stopped twice`);
    this.running.delete(index);
    this.calls.push(`stopVring ${index}`);
    return vring.packed ? vring.base : (vring.base + this.progress) & 0xffff;
  }

  async setVringEnabled(index: number, enabled: boolean): Promise<void> {
    if (enabled) this.enabled.add(index);
    else this.enabled.delete(index);
    this.calls.push(`${enabled ? 'enable' : 'disable'} ${index}`);
  }

  async setVringCall(index: number, fd: Fd | null): Promise<void> {
    if (fd !== null) this.calledWith.set(`call ${index}`, fd.number);
    this.calls.push(`setVringCall ${index} ${fd === null ? 'none' : 'fd'}`);
  }

  async setVringErr(index: number, fd: Fd | null): Promise<void> {
    if (fd !== null) this.calledWith.set(`err ${index}`, fd.number);
    this.calls.push(`setVringErr ${index} ${fd === null ? 'none' : 'fd'}`);
  }

  getConfig(offset: number, sizeBytes: number): Uint8Array | null {
    if (offset + sizeBytes > this.config.length) return null;
    return this.config.slice(offset, offset + sizeBytes);
  }

  setConfig(offset: number, bytes: Uint8Array, _flags: number): boolean {
    if (offset + bytes.length > 8) return false; // the rest is read-only
    this.config.set(bytes, offset);
    return true;
  }

  async setStatus(status: number): Promise<void> {
    this.status = status;
  }

  getStatus(): number {
    return this.status;
  }

  setMtu(mtu: number): boolean {
    if (mtu > 9000) return false;
    this.mtu = mtu;
    return true;
  }

  /* Opt-ins */

  requests: FrontendRequests | null = null;
  rarps: Uint8Array[] = [];
  /** What `saveState` returns, and `loadState` got. */
  deviceState: Uint8Array = Uint8Array.from({ length: 100_000 }, (_, i) => i * 7);
  /** By name: what `sharedObject` hands out a duplicate of. */
  readonly objects = new Map<string, Fd>();
  readonly shmemRegions: readonly number[] = [0x10000, 0, 0x200000];
  readonly cryptoSessions = new Set<bigint>();
  socket: Fd | null = null;

  sessionOpened(requests: FrontendRequests): void {
    this.requests = requests;
  }

  async updateIotlb(entry: IotlbUpdate): Promise<void> {
    this.calls.push(`updateIotlb ${entry.iova} ${entry.sizeBytes} ${entry.permissions}`);
  }

  async invalidateIotlb(iova: number, sizeBytes: number): Promise<void> {
    this.calls.push(`invalidateIotlb ${iova} ${sizeBytes}`);
  }

  async resetDevice(): Promise<void> {
    if (this.running.size > 0) throw new Error('the device is reset under a running ring');
    this.calls.push('resetDevice');
  }

  async sendRarp(mac: Uint8Array): Promise<void> {
    this.rarps.push(mac);
  }

  async saveState(): Promise<Uint8Array> {
    return this.deviceState;
  }

  async loadState(state: Uint8Array): Promise<void> {
    if (state.length === 0) throw new Error('there is nothing in it');
    this.deviceState = state;
  }

  sharedObject(uuid: Uint8Array): Fd | null {
    return this.objects.get(Buffer.from(uuid).toString('hex'))?.dup() ?? null;
  }

  async createCryptoSession(parameters: Uint8Array): Promise<Uint8Array> {
    const id = BigInt(this.cryptoSessions.size + 1);
    this.cryptoSessions.add(id);
    const reply = parameters.slice();
    new DataView(reply.buffer).setBigUint64(reply.length - 8, id, true);
    return reply;
  }

  async closeCryptoSession(id: bigint): Promise<boolean> {
    return this.cryptoSessions.delete(id);
  }

  setGpuSocket(socket: Fd): void {
    this.socket?.close();
    this.socket = socket;
  }

  async sessionClosed(reason: Error | null): Promise<void> {
    this.running.clear();
    this.enabled.clear();
    this.table = null;
    this.socket?.close();
    this.socket = null;
    this.reasons.push(reason);
  }
}
