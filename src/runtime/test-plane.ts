/** A plane for the tests of the worker: one source per vring, whose kicks it counts. */
import { lockTicket } from '../sys/ticket-lock.hot.ts';
import { DRAINING, type DataPlane, type PlaneContext, type VringAttach } from './data-plane.ts';

class TestPlane implements DataPlane {
  readonly #context: PlaneContext;
  readonly #vrings = new Map<number, VringAttach>();
  readonly #kicks: number[] = [];
  #outstanding = 0;
  awake = 0;

  constructor(context: PlaneContext) {
    this.#context = context;
  }

  poll(): number {
    const work = this.awake;
    this.awake = 0;
    return work;
  }

  ready(token: number): void {
    this.#kicks[token] = (this.#kicks[token] ?? 0) + 1;
    this.awake++;
  }

  attachVring(vring: VringAttach): void {
    this.#vrings.set(vring.index, vring);
    this.#context.watch(vring.kickFd, vring.index);
  }

  detachVring(_device: number, index: number): number {
    const vring = this.#vrings.get(index);
    if (vring === undefined) return 0;
    if (this.#outstanding > 0) return DRAINING;
    this.#vrings.delete(index);
    this.#context.unwatch(vring.kickFd);
    return index + 100;
  }

  enableVring(): void {}
  setCallFd(): void {}
  setErrFd(): void {}
  resetDevice(): void {}
  updateIotlb(): void {}
  invalidateIotlb(): void {}

  command(name: string, payload: unknown): unknown {
    if (name === 'kicks') return this.#kicks;
    if (name === 'options') return this.#context.options;
    if (name === 'event') this.#context.emit({ kind: 'fault', device: 1, index: 2, code: -3 });
    if (name === 'outstanding') this.#outstanding = payload as number;
    if (name === 'throw') throw new Error(`no ${String(payload)}`);
    if (name === 'lock' || name === 'lock-throw') lockTicket(payload as Int32Array, 0);
    if (name === 'lock-throw') throw new Error('a mistake with a lock in our hands');
    if (name === 'crash') this.poll = () => this.#crash();
    if (['once', 'busy', 'crash'].includes(name)) this.awake = 1;
    if (name === 'busy') this.poll = () => this.#spin();
    return undefined;
  }

  #crash(): never {
    throw new Error('a mistake of ours');
  }

  #spin(): number {
    this.awake = 1;
    return 1;
  }
}

export function createPlane(context: PlaneContext): DataPlane {
  return new TestPlane(context);
}
