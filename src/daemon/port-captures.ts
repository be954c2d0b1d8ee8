import { VringError } from '../base/errors.ts';
import { CaptureStream } from '../capture/index.ts';
import type { PlaneRunner } from '../runtime/index.ts';
import { ERR_CAPTURE_BUSY } from './switch-control.ts';

/** The captures of a switch: one per port at a time, which ends with the port. */
export class PortCaptures {
  readonly #worker: PlaneRunner;
  readonly #streams = new Map<number, CaptureStream>();

  constructor(worker: PlaneRunner) {
    this.#worker = worker;
  }

  async start(name: string, port: number, snapLen: number): Promise<CaptureStream> {
    if (this.#streams.has(port)) {
      throw new VringError(
        ERR_CAPTURE_BUSY,
        `port ${name} is being captured already; end that capture first`,
        { recovery: 'retry' },
      );
    }
    const stream = new CaptureStream({
      interfaceName: name,
      snapLen,
      onClose: () => {
        this.#streams.delete(port);
        void this.#worker.request('stopCapture', { port }).catch(() => undefined);
      },
    });
    this.#streams.set(port, stream);
    try {
      await this.#worker.request('startCapture', { port, ring: stream.ring });
    } catch (error) {
      stream.close();
      throw error;
    }
    return stream;
  }

  /** Of one port. Idempotent. */
  end(port: number): void {
    this.#streams.get(port)?.close();
  }

  /** Of all. Idempotent. */
  close(): void {
    for (const stream of this.#streams.values()) stream.close();
  }
}
