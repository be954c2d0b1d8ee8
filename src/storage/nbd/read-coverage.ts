/**
 * Which bytes of a read have come: structured replies bring them in chunks, in any order, and each
 * byte must come exactly once.
 */

export class ReadCoverage {
  readonly #sizeBytes: number;
  /** Ends of the covered ranges by their starts, disjoint and not touching, in order. */
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  constructor(sizeBytes: number) {
    this.#sizeBytes = sizeBytes;
  }

  get isWhole(): boolean {
    return this.#starts.length === 1 && this.#starts[0] === 0 && this.#ends[0] === this.#sizeBytes;
  }

  /** Null, or what is wrong with it. */
  add(start: number, sizeBytes: number): string | null {
    const end = start + sizeBytes;
    if (sizeBytes === 0) return 'an empty chunk';
    if (start < 0 || end > this.#sizeBytes) return 'a chunk outside of what was asked for';
    const i = this.#after(start);
    if (i > 0 && this.#ends[i - 1]! > start) return 'a chunk over another one';
    if (i < this.#starts.length && this.#starts[i]! < end) return 'a chunk over another one';
    const joinsLeft = i > 0 && this.#ends[i - 1] === start;
    const joinsRight = i < this.#starts.length && this.#starts[i] === end;
    if (joinsLeft) {
      this.#ends[i - 1] = joinsRight ? this.#ends[i]! : end;
      if (joinsRight) this.#remove(i);
    } else if (joinsRight) {
      this.#starts[i] = start;
    } else {
      this.#starts.splice(i, 0, start);
      this.#ends.splice(i, 0, end);
    }
    return null;
  }

  #remove(i: number): void {
    this.#starts.splice(i, 1);
    this.#ends.splice(i, 1);
  }

  /** Index of the first range that starts behind `start`. */
  #after(start: number): number {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#starts[middle]! <= start) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
