import { assert } from '../base/assert.ts';
import { BATCH, MAX_PORTS, MIN_FRAME_BYTES } from '../base/limits.ts';
import { fillRarp } from './announce.ts';
import {
  COUNTER_COLUMNS,
  COUNTER_NAMES,
  COUNTERS_BYTES,
  CSUM_COMPLETED,
  DROP_NOT_READY,
  DROP_RECEIVER,
  GSO_SEGMENTED,
  GSO_SEGMENTS,
  RX_BYTES,
  RX_FRAMES,
  TX_BYTES,
  TX_FRAMES,
} from './counters.ts';
import { listBytes, plainRun, unicastCount } from './egress.hot.ts';
import {
  bucketFrames,
  FACT_BYTES,
  FACT_LONGEST,
  FACT_ONLY,
  FACT_SPECIAL,
  FACT_WORDS,
  judgeFrames,
  measureFrames,
  reflectFrames,
  SPECIAL_CSUM,
  SPECIAL_FRAME,
} from './forward.hot.ts';
import { FRAME_BATCH_BYTES, FrameBatch } from './frame-batch.ts';
import type { FrameTap } from './frame-tap.ts';
import { fetchMacs } from './mac-table.hot.ts';
import { HEAD_ENTRIES, MacTable } from './mac-table.ts';
import { OFFLOAD_FULL, OFFLOAD_READY, OFFLOAD_SCRATCH_BYTES, SoftwareOffload } from './offload.ts';
import { ACCEPT_CSUM, type PortPlane } from './port-plane.ts';
import { FloodSets, type PortVlan, VlanRules } from './vlan.ts';

/** What the switch must know of a port beside its plane. */
export type PortSettings = {
  readonly vlan: PortVlan;
  /** Most addresses learned from this port. */
  readonly macLimit: number;
  /** Every frame goes back to where it came from; nothing is learned, tags stay. */
  readonly reflect: boolean;
};

export type SwitchOptions = {
  /** Bytes that frame segments point into: the arena, or one buffer in a test. */
  readonly view: DataView;
  readonly bytes: Uint8Array;
  /** Arena offset of SWITCH_SCRATCH_BYTES of own memory. */
  readonly scratchAt: number;
  readonly macTable?: MacTable;
  /** COUNTERS_BYTES of zeroed shared memory; made here when not given. */
  readonly counters?: SharedArrayBuffer;
  /**
   * Where ports put copies off in `transmit`: makes them, so that headers may be edited and the
   * source's buffers go back.
   */
  readonly settle?: () => void;
};

/** Own memory that a switch needs: the header slots of its batch, and what offloads need. */
export const SWITCH_SCRATCH_BYTES = FRAME_BATCH_BYTES + OFFLOAD_SCRATCH_BYTES;

/** Tags of a port that reflects stay as they are. */
const KEEP_TAGS = -1;

const UNKNOWN = -1;

/** A MAC table with more entries is fetched for a batch before it is searched. */
const FETCHED_ENTRIES = 2048;

type Port = {
  readonly index: number;
  readonly plane: PortPlane;
  readonly list: Int32Array;
  rules: VlanRules;
  macLimit: number;
  reflect: boolean;
  tap: FrameTap | null;
};

/**
 * A learning switch with VLANs over PortPlanes.
 *
 * Theory of operation. It belongs to one worker thread. A round (`forwardBatch`) takes a batch from
 * one port and passes over it in columns: judge frames, classify VLANs (ingress.hot.ts), learn and
 * look up, sort into one list per destination (forward.hot.ts), then for each destination edit
 * tags, finish offloads that it does not accept (offload.ts), and transmit its list with one call.
 * Frame bytes are not touched here: a port copies straight from the source's memory. Order is kept
 * between any two ports. Nothing is allocated per round.
 */
export class Switch {
  readonly macTable: MacTable;
  /** One row of COUNTER_COLUMNS per port; see counters.ts. */
  readonly counters: Float64Array<SharedArrayBuffer>;
  readonly #ports: (Port | null)[] = Array.from({ length: MAX_PORTS }, () => null);
  readonly #lists: readonly Int32Array[];
  readonly #listCounts = new Int32Array(MAX_PORTS);
  readonly #touched = new Int32Array(MAX_PORTS);
  readonly #flood = new FloodSets();
  readonly #batch: FrameBatch;
  /** What the batch as a whole is like; FACT_*. */
  readonly #facts = new Int32Array(FACT_WORDS);
  readonly #run: Int32Array;
  readonly #settle: () => void;
  /** The list of all frames of a batch. */
  readonly #all = Int32Array.from({ length: BATCH }, (_, i) => i);
  readonly #offload: SoftwareOffload;
  /** Ports that have something to publish, each once. */
  readonly #unflushed = new Int32Array(MAX_PORTS);
  readonly #isUnflushed = new Uint8Array(MAX_PORTS);
  #unflushedCount = 0;
  /** Of no use but that it was read. */
  fetched = 0;

  constructor(options: SwitchOptions) {
    const { view, bytes, scratchAt } = options;
    this.macTable = options.macTable ?? MacTable.create();
    this.counters = new Float64Array(options.counters ?? new SharedArrayBuffer(COUNTERS_BYTES));
    this.#lists = Array.from({ length: MAX_PORTS }, () => new Int32Array(BATCH));
    this.#batch = new FrameBatch({ buffer: view.buffer, at: scratchAt });
    this.#run = new Int32Array(BATCH);
    this.#settle = options.settle ?? (() => undefined);
    this.#offload = new SoftwareOffload(view, bytes, scratchAt + FRAME_BATCH_BYTES);
  }

  /** Puts a port into a free index. Its counters go on from where the row stands. */
  addPort(index: number, plane: PortPlane, settings: PortSettings): void {
    assert(Number.isInteger(index) && index >= 0 && index < MAX_PORTS, 'port index is in range');
    assert(this.#ports[index] === null, 'port index is free');
    const rules = new VlanRules(settings.vlan);
    const list = this.#lists[index];
    const { macLimit, reflect } = settings;
    this.#ports[index] = { index, plane, list, rules, macLimit, reflect, tap: null };
    if (!reflect) this.#flood.add(index, rules);
  }

  /** Takes the port out and forgets its addresses. False when there was none. */
  removePort(index: number): boolean {
    if (this.#ports[index] === null) return false;
    this.flush();
    this.#ports[index] = null;
    this.#flood.remove(index);
    this.macTable.flush(index);
    return true;
  }

  /** Changes settings of a running port. A change of VLANs or reflection forgets its addresses. */
  updatePort(index: number, settings: Partial<PortSettings>): void {
    const port = this.#port(index);
    const rules = settings.vlan === undefined ? port.rules : new VlanRules(settings.vlan);
    port.macLimit = settings.macLimit ?? port.macLimit;
    const reflect = settings.reflect ?? port.reflect;
    if (rules === port.rules && reflect === port.reflect) return;
    port.rules = rules;
    port.reflect = reflect;
    this.#flood.remove(index);
    if (!reflect) this.#flood.add(index, rules);
    this.macTable.flush(index);
  }

  /** Shows the port's frames to `tap`, or to nobody. */
  setTap(index: number, tap: FrameTap | null): void {
    this.#port(index).tap = tap;
  }

  hasPort(index: number): boolean {
    return this.#ports[index] !== null;
  }

  /** Most addresses that the port may learn; 0 where there is no port. */
  macLimitOf(index: number): number {
    return this.#ports[index]?.macLimit ?? 0;
  }

  /**
   * Raises the port's counters to what a predecessor counted, where that is more: a counter never
   * runs back, and a guest that moves away and returns is not counted twice.
   */
  raiseCounters(index: number, counted: Readonly<Record<string, number>>): void {
    for (const [column, name] of COUNTER_NAMES.entries()) {
      const at = index * COUNTER_COLUMNS + column;
      this.counters[at] = Math.max(this.counters[at], counted[name] ?? 0);
    }
  }

  /** Zeroes a port's counters, for when its index is given to another port. */
  clearCounters(index: number): void {
    this.counters.fill(0, index * COUNTER_COLUMNS, (index + 1) * COUNTER_COLUMNS);
  }

  /** Tells the time (whole seconds, any start); ages a bounded part of the MAC table. */
  tick(nowSeconds: number): void {
    this.macTable.tick(nowSeconds);
  }

  /** One whole round of a port: `forward`, then `flush`. Returns how many frames it sent. */
  forwardBatch(ingress: number): number {
    const count = this.forward(ingress);
    this.flush();
    return count;
  }

  /**
   * Takes one batch from the port and transmits it. A worker with several ports calls this for
   * each and `flush` once. Returns how many frames there were.
   */
  forward(ingress: number): number {
    const port = this.#port(ingress);
    const batch = this.#batch;
    batch.plain = 0;
    const count = port.plane.receive(batch);
    if (count === 0) return 0;
    this.#pass(port, count);
    port.plane.release(batch);
    this.#markUnflushed(ingress);
    return count;
  }

  /** A RARP request of `mac`, as if the port had sent it: everybody learns where `mac` is. */
  announce(ingress: number, mac: Uint8Array): void {
    this.#batch.plain = 0;
    fillRarp(this.#batch, mac);
    this.#pass(this.#port(ingress), 1);
    this.flush();
  }

  #pass(port: Port, count: number): void {
    this.#offload.startRound();
    if (port.tap !== null) port.tap.ingress(this.#batch, count);
    if (port.reflect) this.#reflect(port, count);
    else this.#judge(port, count);
    this.#settle();
  }

  /** Publishes and notifies on every port that was touched since the last time, or is unsent. */
  flush(): void {
    const count = this.#unflushedCount;
    this.#unflushedCount = 0;
    for (let k = 0; k < count; k++) {
      const index = this.#unflushed[k];
      this.#isUnflushed[index] = 0;
      const port = this.#ports[index];
      if (port === null) continue;
      port.plane.flush();
      if (port.plane.isUnsent === true) this.#markUnflushed(index);
    }
  }

  /** Ports that the next `flush` has something to do for. */
  get unflushed(): number {
    return this.#unflushedCount;
  }

  #port(index: number): Port {
    const port = this.#ports[index];
    assert(port !== null && port !== undefined, 'the port exists');
    return port;
  }

  #reflect(port: Port, count: number): void {
    const batch = this.#batch;
    const row = port.index * COUNTER_COLUMNS;
    const facts = this.#facts;
    measureFrames(batch, count, facts);
    this.counters[row + RX_FRAMES] += count;
    this.counters[row + RX_BYTES] += facts[FACT_BYTES];
    if (
      batch.plain !== 0 &&
      batch.shortest >= MIN_FRAME_BYTES &&
      batch.longest <= port.plane.maxFrameBytes
    ) {
      facts[FACT_SPECIAL] = 0; // nothing to be found out about any single frame
      this.#deliver(port, this.#all, count, KEEP_TAGS, KEEP_TAGS);
      return;
    }
    const length = reflectFrames(batch, count, port.list, this.counters, row, facts);
    if (length > 0) this.#deliver(port, port.list, length, KEEP_TAGS, KEEP_TAGS);
  }

  #judge(port: Port, count: number): void {
    const batch = this.#batch;
    const { rules, index } = port;
    const { cells, head, learned } = this.macTable;
    const { counters } = this;
    const row = index * COUNTER_COLUMNS;
    const facts = this.#facts;
    measureFrames(batch, count, facts);
    if (head[HEAD_ENTRIES] > FETCHED_ENTRIES) {
      const { headerView: view, headerWords, headerAt } = batch;
      this.fetched = fetchMacs(cells, head, view, headerWords, headerAt, count, rules.untagged);
    }
    judgeFrames(
      batch,
      count,
      index,
      rules.untagged,
      rules.access,
      rules.allowed,
      port.macLimit,
      cells,
      head,
      learned,
      counters,
      row,
      facts,
    );
    counters[row + RX_FRAMES] += count;
    counters[row + RX_BYTES] += facts[FACT_BYTES];
    const only = facts[FACT_ONLY];
    if (only >= 0) {
      const target = this.#port(only);
      this.#deliver(target, this.#all, count, target.rules.untagged, rules.untagged);
      return;
    }
    const touched = this.#touched;
    const listCounts = this.#listCounts;
    const touchedCount = bucketFrames(
      batch,
      count,
      index,
      this.#flood.words,
      this.#lists,
      listCounts,
      touched,
      counters,
      row,
    );
    for (let k = 0; k < touchedCount; k++) {
      const target = this.#port(touched[k]);
      const length = listCounts[target.index];
      listCounts[target.index] = 0;
      this.#deliver(target, target.list, length, target.rules.untagged, rules.untagged);
    }
  }

  /**
   * Sends the first `count` frames of the list, in order. `untagged` is the VLAN that leaves
   * without a tag, `plainVlan` the one of frames that came without.
   */
  #deliver(port: Port, list: Int32Array, count: number, untagged: number, plainVlan: number): void {
    const { plane } = port;
    const batch = this.#batch;
    if (!plane.ready) {
      // Floods to a port that is not there are nobody's loss.
      const lost = port.reflect ? count : unicastCount(batch, list, count);
      this.counters[port.index * COUNTER_COLUMNS + DROP_NOT_READY] += lost;
      return;
    }
    const { accepts, maxFrameBytes } = plane;
    if (this.#isPlain(accepts, maxFrameBytes) && untagged === plainVlan) {
      const bytes = list === this.#all ? this.#facts[FACT_BYTES] : UNKNOWN;
      this.#send(port, batch, list, count, bytes);
      this.#markUnflushed(port.index);
      return;
    }
    this.#settle(); // what an earlier port gets is read from the headers that are edited now
    // Tags edited for this port are there for the next one, too: no frame is plain any more.
    this.#facts[FACT_SPECIAL] = SPECIAL_FRAME;
    let from = 0;
    while (from < count) {
      const end = plainRun(batch, list, from, count, accepts, maxFrameBytes, untagged);
      if (end > from) {
        this.#sendFinished(port);
        this.#send(port, batch, this.#slice(list, from, end), end - from, UNKNOWN);
      }
      if (end < count) this.#finish(port, list[end]);
      from = end + 1;
    }
    this.#sendFinished(port);
    this.#markUnflushed(port.index);
  }

  /** True when every frame of the batch can be delivered as it is where tags need no edit. */
  #isPlain(accepts: number, maxFrameBytes: number): boolean {
    const special = this.#facts[FACT_SPECIAL];
    if (special !== 0 && (special !== SPECIAL_CSUM || (accepts & ACCEPT_CSUM) === 0)) return false;
    return this.#facts[FACT_LONGEST] <= maxFrameBytes;
  }

  #slice(list: Int32Array, from: number, end: number): Int32Array {
    if (from === 0) return list;
    for (let k = from; k < end; k++) this.#run[k - from] = list[k];
    return this.#run;
  }

  /** Completes what the receiver does not accept; the result waits in the scratch batch. */
  #finish(port: Port, i: number): void {
    const offload = this.#offload;
    const row = port.index * COUNTER_COLUMNS;
    const { accepts, maxFrameBytes } = port.plane;
    let outcome = offload.begin(this.#batch, i, accepts, maxFrameBytes);
    if (outcome === OFFLOAD_FULL) {
      this.#sendFinished(port);
      outcome = offload.begin(this.#batch, i, accepts, maxFrameBytes);
    }
    if (outcome !== OFFLOAD_READY) {
      assert(outcome > 0, 'an empty scratch holds any frame');
      this.counters[row + outcome]++;
      return;
    }
    const segments = offload.segments;
    if (segments === 0) {
      this.counters[row + CSUM_COMPLETED]++;
    } else {
      this.counters[row + GSO_SEGMENTED]++;
      this.counters[row + GSO_SEGMENTS] += segments;
    }
    while (!offload.emit()) this.#sendFinished(port);
  }

  #sendFinished(port: Port): void {
    const offload = this.#offload;
    const { batch, list } = offload;
    if (batch.count > 0) this.#send(port, batch, list, batch.count, UNKNOWN);
    offload.reset();
  }

  /** `bytes`: of all frames of the list, or UNKNOWN. */
  #send(port: Port, batch: FrameBatch, list: Int32Array, count: number, bytes: number): void {
    if (port.tap !== null) port.tap.egress(batch, list, count);
    const delivered = port.plane.transmit(batch, list, count);
    const row = port.index * COUNTER_COLUMNS;
    this.counters[row + TX_FRAMES] += delivered;
    const isAll = delivered === count && bytes !== UNKNOWN;
    this.counters[row + TX_BYTES] += isAll ? bytes : listBytes(batch, list, delivered);
    if (delivered !== count) this.counters[row + DROP_RECEIVER] += count - delivered;
  }

  #markUnflushed(index: number): void {
    if (this.#isUnflushed[index] !== 0) return;
    this.#isUnflushed[index] = 1;
    this.#unflushed[this.#unflushedCount++] = index;
  }
}
