/** For tests: what a disk may hold by the log of `kill-child.ts`. */
export const BLOCK_BYTES = 8192;
export const BLOCKS = 256;

/** By block: stamps that it may carry; 0 is the base. */
export type DiskState = Map<number, Set<number>>;

/**
 * From possible states and the log of one life to the states that are possible after it: one, or
 * two when it ended in a rollback.
 */
export function replay(start: DiskState, lines: readonly string[]): DiskState[] {
  let now = start;
  const saved = new Map<string, DiskState>();
  let rollback: string | null = null;
  for (const line of lines) {
    const [word, first, second] = line.split(' ');
    if (word === 'begin') now.set(Number(first), new Set([...of(now, first), Number(second)]));
    if (word === 'end') now.set(Number(first), new Set([Number(second)]));
    // Nothing was written between the snapshot and this line.
    if (word === 'save') saved.set(first!, copy(now));
    if (word === 'rollback') rollback = first!;
    if (word === 'rolled') {
      now = copy(saved.get(first!)!);
      rollback = null;
    }
  }
  return rollback === null ? [now] : [now, saved.get(rollback)!];
}

/** The stamps of a disk; throws where a block is no single write's. */
export function stampsOf(disk: Buffer): number[] {
  return Array.from({ length: BLOCKS }, (_, block) => {
    const bytes = disk.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    const stamp = bytes.readUInt32LE(4);
    for (let at = 0; at < BLOCK_BYTES; at += 512) {
      const isRight = bytes.readUInt32LE(at) === block && bytes.readUInt32LE(at + 4) === stamp;
      if (!isRight) throw new Error(`block ${block} is torn at byte ${at}, or another's`);
    }
    return stamp;
  });
}

export function isPossible(stamps: readonly number[], state: DiskState): string | null {
  for (const [block, stamp] of stamps.entries()) {
    const allowed = state.get(block)!;
    if (!allowed.has(stamp)) {
      return `block ${block} has stamp ${stamp}, expected ${[...allowed].join(' or ')}`;
    }
  }
  return null;
}

function of(state: DiskState, block: string | undefined): Set<number> {
  return state.get(Number(block))!;
}

function copy(state: DiskState): DiskState {
  return new Map([...state].map(([block, stamps]) => [block, new Set(stamps)]));
}
