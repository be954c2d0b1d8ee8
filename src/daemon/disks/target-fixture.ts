/** A storage target of its own in a folder of its own, for tests. */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseDisk } from './disk-input.ts';
import type { DiskState, DiskStatus } from './disk-types.ts';
import { parseAdapter } from './scsi-input.ts';
import type { AdapterStatus } from './scsi-types.ts';
import { StorageTarget } from './storage-target.ts';

export const FIXTURE_DISK_BYTES = 1 << 20;

export class TargetFixture {
  readonly folder = mkdtempSync(join(tmpdir(), 'vring-target-'));
  /** What `vring events` would show. */
  readonly events: { kind: string; disk: string; message: string }[] = [];
  readonly target: StorageTarget;

  constructor(stateFile = 'state.json') {
    this.target = new StorageTarget({
      stateFile: this.path(stateFile),
      spinMs: 0,
      report: (kind, disk, message) => void this.events.push({ kind, disk, message }),
      socketOwner: () => null,
    });
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  /** An image, empty. Returns its path. */
  file(name: string, sizeBytes = FIXTURE_DISK_BYTES): string {
    writeFileSync(this.path(name), '');
    truncateSync(this.path(name), sizeBytes);
    return this.path(name);
  }

  /** As the API adds it, with a socket of its name. */
  add(name: string, layers: unknown[], more: object = {}): Promise<DiskStatus> {
    return this.target.addDisk(parseDisk({ name, socket: this.path(name), layers, ...more }));
  }

  /** The same for a SCSI adapter. */
  addAdapter(name: string, units: unknown[], more: object = {}): Promise<AdapterStatus> {
    const adapter = { name, socket: this.path(name), units, ...more };
    return this.target.addAdapter(parseAdapter(adapter));
  }

  /** Waits at most 20 s. */
  async state(name: string, state: DiskState): Promise<DiskStatus> {
    for (const deadline = performance.now() + 20_000; ; await sleep(10)) {
      const status = await this.target.disk(name);
      if (status.state === state) return status;
      if (performance.now() > deadline) throw new Error(`${name} is ${status.state}, not ${state}`);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.target.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
