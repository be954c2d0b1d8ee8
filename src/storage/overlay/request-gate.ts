/** Requests go through; now and then all of them are held, for what must not meet any. */
export class RequestGate {
  #underWay = 0;
  #held: Promise<void> | null = null;
  #idle: (() => void) | null = null;

  async pass<T>(request: () => Promise<T>): Promise<T> {
    while (this.#held !== null) await this.#held;
    this.#underWay++;
    try {
      return await request();
    } finally {
      this.#underWay--;
      if (this.#underWay === 0) this.#idle?.();
    }
  }

  /** One at a time: the caller's affair. */
  async hold<T>(work: () => Promise<T>): Promise<T> {
    let release = (): void => undefined;
    this.#held = new Promise((resolve) => (release = resolve));
    try {
      if (this.#underWay > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
      this.#idle = null;
      return await work();
    } finally {
      this.#held = null;
      release();
    }
  }
}
