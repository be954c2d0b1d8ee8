/** For tests of commands that are under way: units whose engines finish when the test says so. */
import type { VringAttach } from '../../runtime/data-plane.ts';
import { createMemoryImage, openEngine } from '../../storage/index.ts';
import * as scsi from '../../wire/scsi.ts';
import { LateEngine } from '../disk/late-engine.ts';
import { cdb, ScsiFixture, type Sent } from './scsi-fixture.ts';

export const NONE = new Uint8Array(0);

export function filled(value: number, size: number): Uint8Array {
  return new Uint8Array(size).fill(value);
}

/** One block each. */
export const write = (lba: number): Uint8Array => cdb(scsi.WRITE_10, 10, [2, 4, lba], [7, 2, 1]);
export const read = (lba: number): Uint8Array => cdb(scsi.READ_10, 10, [2, 4, lba], [7, 2, 1]);

/** Two units of target 0, whose engines are late. */
export function late(
  packed = false,
  room = 64,
  inflight: (index: number) => VringAttach['inflight'] = () => null,
): { f: ScsiFixture; engines: LateEngine[] } {
  const engines: LateEngine[] = [];
  const units = [0, 1].map((lun) => ({ target: 0, lun, image: createMemoryImage(1 << 20) }));
  const f = new ScsiFixture({
    units,
    packed,
    queues: 3,
    inflight,
    open: (spec) => {
      engines.push(new LateEngine(openEngine(spec), room, 1000 + engines.length));
      return engines.at(-1)!;
    },
  });
  return { f: f.ready(), engines };
}

/** The engine finishes what it holds at `index`. */
export function finish(f: ScsiFixture, engine: LateEngine, index = 0, status = 0): void {
  engine.finish(index, status);
  f.plane.ready(f.watched.get(engine.completionFd)!, performance.now());
  f.poll();
}

export const waits = (f: ScsiFixture, sent: Sent): boolean => f.answerOf(sent) === null;
