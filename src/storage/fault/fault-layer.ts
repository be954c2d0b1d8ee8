/**
 * A medium that fails by rules: with an errno, late, or in the middle of a write. For tests of what
 * stands on it; the rules change while it runs, by `control('faults', rules)`.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoName, EIO } from '../../sys/index.ts';
import { type Layer, LayerError, type ZeroOptions } from '../layer/layer.ts';
import { PassLayer } from '../layer/pass-layer.ts';
import type { FaultRule, FaultSpec } from '../stack/stack-spec.ts';
import { errnoOfRule, type FaultOp, FaultRules, parseFaultRules } from './fault-rules.ts';
import { SeededRandom } from './random.ts';

const SECTOR_BYTES = 512;

export class FaultLayer extends PassLayer {
  readonly description: string;
  readonly #random: SeededRandom;
  readonly #rules: FaultRules;
  /** A flush has failed: the medium has lost something, and no later flush may say otherwise. */
  #lost: LayerError | null = null;
  #errors = 0;
  #delays = 0;
  #torn = 0;

  /** @throws ConfigError. */
  constructor(below: Layer, spec: FaultSpec) {
    super(below);
    this.#random = new SeededRandom(spec.seed ?? 1);
    this.description = `fault(seed ${this.#random.seed}) over ${below.description}`;
    this.#rules = new FaultRules(this.#random);
    this.#rules.set(parseFaultRules(spec.rules ?? [], 'rules'));
  }

  override async read(at: number, into: Uint8Array): Promise<void> {
    await this.#meet('read', at, into.length);
    await this.below.read(at, into);
  }

  override async write(at: number, from: Uint8Array, fua: boolean): Promise<void> {
    if (fua && this.#lost !== null) throw this.#lost;
    const torn = await this.#meet('write', at, from.length);
    if (torn) {
      const part = from.subarray(0, this.#part(from.length));
      if (part.length > 0) await this.below.write(at, part, false);
      throw this.#failed(EIO, 'write', at, `torn after ${part.length} bytes`);
    }
    await this.below.write(at, from, fua);
  }

  override async flush(): Promise<void> {
    if (this.#lost !== null) throw this.#lost;
    try {
      await this.#meet('flush', 0, 0);
      await this.below.flush();
    } catch (error) {
      if (error instanceof LayerError) this.#lost ??= error;
      throw error;
    }
  }

  override async discard(at: number, sizeBytes: number): Promise<void> {
    await this.#meet('discard', at, sizeBytes);
    await this.below.discard(at, sizeBytes);
  }

  override async zero(at: number, sizeBytes: number, options: ZeroOptions): Promise<void> {
    if (options.fua && this.#lost !== null) throw this.#lost;
    const torn = await this.#meet('zero', at, sizeBytes);
    if (torn) {
      const part = this.#part(sizeBytes);
      if (part > 0) await this.below.zero(at, part, { ...options, fua: false });
      throw this.#failed(EIO, 'zero', at, `torn after ${part} bytes`);
    }
    await this.below.zero(at, sizeBytes, options);
  }

  /** `faults`: other rules from now on, counted anew. */
  override async control(name: string, payload: unknown): Promise<unknown> {
    if (name !== 'faults') return this.below.control(name, payload);
    this.#rules.set(parseFaultRules(payload, 'faults'));
    return undefined;
  }

  override counters(): Record<string, number> {
    return {
      ...this.below.counters(),
      faultErrors: this.#errors,
      faultDelays: this.#delays,
      faultTorn: this.#torn,
    };
  }

  /** Waits and fails as the rules say; true: the request is to be torn. */
  async #meet(op: FaultOp, at: number, sizeBytes: number): Promise<boolean> {
    for (const rule of this.#rules.meet(op, at, sizeBytes)) {
      if (rule.action === 'delay') {
        this.#delays++;
        await sleep(rule.ms);
      } else if (rule.action === 'error') {
        throw this.#failed(errnoOfRule(rule.errno, 'errno'), op, at, placeOf(rule));
      } else if (rule.action === 'crash') {
        await endThread(`${this.description}: ${op} at byte ${at} ends the thread by rule`);
      } else if (op === 'write' || op === 'zero') {
        this.#torn++;
        return true;
      } else {
        throw this.#failed(EIO, op, at, placeOf(rule));
      }
    }
    return false;
  }

  /** Whole sectors, fewer than all. */
  #part(sizeBytes: number): number {
    return this.#random.below(sizeBytes / SECTOR_BYTES) * SECTOR_BYTES;
  }

  #failed(errno: number, op: FaultOp, at: number, why: string): LayerError {
    this.#errors++;
    const text = `${this.description}: ${op} at byte ${at} fails with ${errnoName(errno)} by rule`;
    return new LayerError(errno, `${text}: ${why}`);
  }
}

/** As what nobody catches; it never settles. */
function endThread(message: string): Promise<never> {
  setImmediate(() => {
    throw new Error(message);
  });
  return new Promise(() => undefined);
}

function placeOf(rule: FaultRule): string {
  if (rule.at === undefined && rule.sizeBytes === undefined) return `${rule.action} of ${rule.op}`;
  const to = rule.sizeBytes === undefined ? 'the end' : (rule.at ?? 0) + rule.sizeBytes;
  return `${rule.action} of ${rule.op} from ${rule.at ?? 0} to ${to}`;
}
