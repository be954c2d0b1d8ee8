/**
 * Numbers the records of test frames that lie ready in guest memory: the only bytes that change
 * from frame to frame are sequence, stamp and check. Layout: `test-frame.ts`.
 */
const AT_BYTES = 2;
const AT_FLOW_RUN = 4; // u32: flow | run << 16
const AT_SEQUENCE = 8;
const AT_STAMP = 12;
const AT_CHECK = 16;

/**
 * Gives the records of the `count` slots on top of the stack `slots[0 .. top)` their numbers, in
 * the order in which `sendSlots` sends them: the top one first. Allocates nothing.
 */
export function stampFrames(
  arena: DataView,
  slotOffset: Float64Array, // arena offset of each slot's virtio-net header
  slotFlow: Uint16Array, //    flow of each slot: its index in `nextSequence`
  slots: Int32Array,
  top: number,
  count: number,
  recordAt: number, //    from the slot's start
  recordBytes: number, // distance of the records
  records: number, //     in each frame
  nextSequence: Uint32Array,
  stamp: number, //       microseconds, u32
): void {
  for (let i = 0; i < count; i++) {
    const slot = slots[top - 1 - i];
    const flow = slotFlow[slot];
    let at = slotOffset[slot] + recordAt;
    let sequence = nextSequence[flow];
    for (let r = 0; r < records; r++) {
      const flowRun = arena.getInt32(at + AT_FLOW_RUN, true);
      const bytes = arena.getUint16(at + AT_BYTES, true);
      let check = Math.imul(sequence ^ 0x1e3779b1, 0x05ebca6b);
      check ^= Math.imul(stamp ^ flowRun, 0x42b2ae35);
      check ^= bytes ^ (check >>> 15);
      arena.setInt32(at + AT_SEQUENCE, sequence, true);
      arena.setInt32(at + AT_STAMP, stamp, true);
      arena.setInt32(at + AT_CHECK, check, true);
      sequence++;
      at += recordBytes;
    }
    nextSequence[flow] = sequence;
  }
}
