/**
 * A storage thread: the event loop on which the layers of one disk run. Started by `StorageThread`;
 * `workerData` is a `StorageBoot`. It ends when the other end of its mailbox is closed.
 */
import { flushCompileCache } from 'node:module';
import { type MessagePort, workerData } from 'node:worker_threads';
import { messageOf, VringError } from '../../base/errors.ts';
import { recordFds, setThreadName } from '../../sys/index.ts';
import type { EngineSpec } from '../disk-image.ts';
import type { Layer } from '../layer/layer.ts';
import { LimitLayer } from '../limit/limit-layer.ts';
import { openLayers } from '../stack/open-layers.ts';
import type { StackSpec } from '../stack/stack-spec.ts';
import type { ZoneShape } from '../zoned/zone-types.ts';
import { Exports } from './exports.ts';
import { LayerRunner } from './layer-runner.ts';
import { RequestRing } from './request-ring.ts';

export type StorageBoot = {
  readonly name: string;
  readonly mailbox: MessagePort;
  /** What the thread has open is written down here: `recordFds`. */
  readonly fds: SharedArrayBuffer;
  readonly stack: StackSpec;
  /** The last part of the stack, where the main thread has opened it. */
  readonly source: EngineSpec | null;
  readonly readOnly: boolean;
  /** `LimitCells` that hold for the data plane and exports together, from the top. */
  readonly exportLimits: readonly SharedArrayBuffer[];
  /** Null: nothing comes from a data plane; the thread is there for `control` alone. */
  readonly bridge: {
    readonly ring: SharedArrayBuffer;
    readonly submitFd: number;
    readonly completionFd: number;
  } | null;
};

export type StorageRequest = {
  readonly id: number;
  readonly op: 'measure' | 'resize' | 'control' | 'counters' | 'close';
  readonly name?: string;
  readonly payload?: unknown;
};

export type LayerFacts = {
  readonly description: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Null: the disk is not zoned. */
  readonly zones: ZoneShape | null;
};

export type StorageReply =
  | { readonly opened: LayerFacts }
  | { readonly problem: string }
  | { readonly id: number; readonly result: unknown; readonly sizeBytes: number }
  /** Id 0: the stack could not be opened. */
  | { readonly id: number; readonly error: StorageFailure };

export type StorageFailure = {
  readonly code: string;
  readonly message: string;
  readonly recovery: VringError['recovery'];
};

const boot = workerData as StorageBoot;
const { mailbox } = boot;
setThreadName(boot.name);
recordFds(boot.fds);
flushCompileCache();

function reply(message: StorageReply): void {
  mailbox.postMessage(message);
}

function failureOf(thrown: unknown): StorageFailure {
  const { code, recovery = 'fatal' } = thrown as Partial<VringError>;
  return { code: code ?? 'ERR_VRING_STORAGE', message: messageOf(thrown), recovery };
}

async function serve(layer: Layer): Promise<void> {
  const { bridge } = boot;
  const onProblem = (problem: string): void => reply({ problem });
  const ring = bridge === null ? null : new RequestRing(bridge.ring);
  const runner = ring === null ? null : new LayerRunner({ ...bridge!, ring, layer, onProblem });
  const exported = boot.exportLimits.reduceRight(
    (below: Layer, cells) => LimitLayer.beside(below, cells),
    layer,
  );
  const exports = new Exports(exported);
  const handle = async (request: StorageRequest): Promise<unknown> => {
    switch (request.op) {
      case 'measure':
        return layer.measure();
      case 'resize':
        return layer.resize(request.payload as number);
      case 'control':
        return (
          exports.control(request.name as string, request.payload) ??
          layer.control(request.name as string, request.payload)
        );
      case 'counters':
        return layer.counters();
      case 'close':
        // Whatever one of them says: the others are closed as well.
        try {
          await exports.close();
        } finally {
          await runner?.close();
          await layer.close();
        }
        return undefined;
    }
  };
  mailbox.on('message', (request: StorageRequest) => {
    const { id } = request;
    handle(request)
      .then((result) => reply({ id, result, sizeBytes: layer.sizeBytes }))
      .catch((thrown: unknown) => reply({ id, error: failureOf(thrown) }));
  });
  const { description, sizeBytes, readOnly } = layer;
  const zones = layer.zones?.shape ?? null;
  reply({ opened: { description, sizeBytes, readOnly, zones } });
}

try {
  await serve(await openLayers(boot.stack, boot.source, { readOnly: boot.readOnly }));
} catch (thrown) {
  reply({ id: 0, error: failureOf(thrown) });
}
