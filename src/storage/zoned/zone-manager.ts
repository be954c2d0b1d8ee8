/** What is done to zones as a whole: opened, closed, finished, reset, and given up. */
import { ConfigError } from '../../base/errors.ts';
import type { Layer } from '../layer/layer.ts';
import { RECORD_STATE } from './zone-format.ts';
import type { ZoneLog } from './zone-log.ts';
import type { Zone, ZoneSet } from './zone-set.ts';
import {
  ZONE_CLOSED,
  ZONE_EMPTY,
  ZONE_EXPLICIT_OPEN,
  ZONE_FULL,
  ZONE_OFFLINE,
  ZONE_READ_ONLY,
  ZoneError,
  type ZoneAction,
} from './zone-types.ts';

export type ZoneManagerOptions = {
  readonly set: ZoneSet;
  readonly log: ZoneLog;
  readonly below: Layer;
  readonly dataAt: number;
  readonly zoneBytes: number;
  readonly capacityBytes: number;
  readonly readOnly: boolean;
};

export class ZoneManager {
  readonly #options: ZoneManagerOptions;

  constructor(options: ZoneManagerOptions) {
    this.#options = options;
  }

  /** On a sequential zone; `again`: it may have been done. @throws ZoneError. */
  act(action: Exclude<ZoneAction, 'reset-all'>, zone: Zone, again: boolean): Promise<void> {
    return this.#exclusively(zone, async () => {
      const isLost = zone.condition === ZONE_OFFLINE || zone.condition === ZONE_READ_ONLY;
      if (isLost || this.#options.readOnly) throw refusal(action, zone);
      switch (action) {
        case 'open':
          return this.#open(zone);
        case 'close':
          return this.#close(zone, again);
        case 'finish':
          return this.#finish(zone);
        case 'reset':
          return this.#reset([zone]);
      }
    });
  }

  /** All zones that have data or are in use. */
  async resetAll(): Promise<void> {
    const { set, readOnly } = this.#options;
    if (readOnly) throw new ZoneError('invalid', 'the disk is read-only');
    const held: (() => void)[] = [];
    try {
      const zones: Zone[] = [];
      for (const zone of set.all) {
        if (zone.conventional) continue;
        held.push(await holdOf(zone));
        if (zone.isActive || zone.condition === ZONE_FULL) zones.push(zone);
      }
      if (zones.length > 0) await this.#reset(zones);
    } finally {
      for (const release of held) release();
    }
  }

  /** `{ zone, condition }`: `read-only` or `offline`, for good. */
  async giveUp(payload: unknown): Promise<void> {
    const { set } = this.#options;
    const { zone: index, condition: name } = (payload ?? {}) as Record<string, unknown>;
    const zone = typeof index === 'number' ? set.all[index] : undefined;
    if (zone === undefined || zone.conventional) {
      const text = `${String(index)} is no sequential zone; there are ${set.all.length} zones`;
      throw new ConfigError('zone', text);
    }
    if (name !== 'read-only' && name !== 'offline') {
      throw new ConfigError('condition', `${String(name)}, expected read-only or offline`);
    }
    const condition = name === 'offline' ? ZONE_OFFLINE : ZONE_READ_ONLY;
    await this.#exclusively(zone, async () => {
      if (zone.condition === ZONE_OFFLINE) throw refusal(name, zone);
      await this.#note(zone, condition);
      await this.#options.below.flush();
      set.become(zone, condition);
    });
  }

  async #open(zone: Zone): Promise<void> {
    if (zone.condition === ZONE_EXPLICIT_OPEN) return;
    if (zone.condition === ZONE_FULL) throw refusal('open', zone);
    const before = zone.condition;
    const { set } = this.#options;
    set.open(zone, ZONE_EXPLICIT_OPEN); // at once: others are judged while the log is written
    try {
      await this.#note(zone, ZONE_EXPLICIT_OPEN);
    } catch (error) {
      set.become(zone, before);
      throw error;
    }
  }

  async #close(zone: Zone, again: boolean): Promise<void> {
    if (zone.condition === ZONE_CLOSED || (again && zone.condition === ZONE_EMPTY)) return;
    if (!zone.isOpen) throw refusal('close', zone);
    const condition = zone.pointer === 0 ? ZONE_EMPTY : ZONE_CLOSED;
    await this.#note(zone, condition);
    this.#options.set.become(zone, condition);
  }

  async #finish(zone: Zone): Promise<void> {
    const { below } = this.#options;
    if (zone.condition === ZONE_FULL) return below.flush(); // of the writes that filled it
    await this.#note(zone, ZONE_FULL);
    await below.flush();
    this.#options.set.become(zone, ZONE_FULL);
    zone.pointer = this.#options.capacityBytes;
  }

  /** Zones that are held. Their data goes when nothing can bring it back. */
  async #reset(zones: readonly Zone[]): Promise<void> {
    const { set, below, dataAt, zoneBytes } = this.#options;
    const due = zones.filter(({ condition }) => condition !== ZONE_EMPTY);
    if (due.length === 0) return;
    await Promise.all(due.map((zone) => this.#note(zone, ZONE_EMPTY, zone.generation + 1, 0)));
    for (const zone of due) {
      zone.generation++;
      zone.written = zone.pointer = 0;
      set.become(zone, ZONE_EMPTY);
    }
    await below.flush();
    for (const zone of due) await below.discard(dataAt + zone.at, zoneBytes);
  }

  #note(
    zone: Zone,
    condition: number,
    generation = zone.generation,
    written = zone.written,
  ): Promise<void> {
    const { index } = zone;
    const entry = { kind: RECORD_STATE, zone: index, generation, condition, written } as const;
    return this.#options.log.append(entry);
  }

  async #exclusively(zone: Zone, work: () => Promise<void>): Promise<void> {
    const release = await holdOf(zone);
    try {
      await work();
    } finally {
      release();
    }
  }
}

/** Resolves with what lets others in again, when no write of the zone is under way. */
async function holdOf(zone: Zone): Promise<() => void> {
  while (zone.held !== null) await zone.held;
  const release = zone.hold();
  await zone.ended;
  return release;
}

function refusal(action: string, zone: Zone): ZoneError {
  const text = `zone ${zone.index} in condition ${zone.condition}: ${action} is not possible`;
  return new ZoneError('invalid', text);
}
