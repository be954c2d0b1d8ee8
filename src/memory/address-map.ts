/**
 * What the data plane knows of a guest's memory: which ranges of its address space are where in
 * the arena. Three parallel columns, sorted by `start`, no overlap. Plain numbers: regions end
 * below 2^53, which is checked when the table is made.
 */
export type AddressMap = {
  /** Ranges in use; the columns may be longer. */
  readonly count: number;
  /** First address of each range, in the space of the map (GPA, UVA or IOVA). */
  readonly start: Float64Array;
  /** First address behind each range. */
  readonly end: Float64Array;
  /** Arena offset minus address: `offset = address + delta[i]`. */
  readonly delta: Float64Array;
  /** IOTLB only: what each range may be used for, bit 0 read, bit 1 write. Else both. */
  readonly permission?: Uint8Array;
};
