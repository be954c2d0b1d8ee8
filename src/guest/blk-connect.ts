/** From the name of a back-end to a running block guest: what the command line and tests use. */
import { ConfigError, SysError, VringError } from '../base/errors.ts';
import type { VhostBackend } from '../base/vhost-backend.ts';
import { ShadowBackend } from '../runtime/index.ts';
import { VhostVdpaBackend } from '../vhost-kernel/index.ts';
import { VhostUserFrontend, type FrontendOptions } from '../vhost-user/index.ts';
import { VIRTIO_ID_BLOCK, deviceName } from '../wire/virtio.ts';
import { parseBackendSpec, type BackendSpec } from './backend-spec.ts';
import { BlkGuest, type BlkGuestOptions } from './blk-driver.ts';

export type BlkConnectOptions = BlkGuestOptions & {
  /** Which back-end: parsed, or as people write it, `vhost-vdpa:/dev/vhost-vdpa-0`. */
  readonly backend?: BackendSpec | string;
  /** Short for a vhost-user back-end at this path. */
  readonly socket?: string;
  /** Ends the wait of a vhost-user server. */
  readonly signal?: AbortSignal;
  /** Survive a back-end that goes away: open it, or listen, again for as long as it takes. */
  readonly reconnect?: boolean;
  /** The back-end says that the configuration space changed. */
  readonly onConfigChange?: () => void;
  /** Of vhost-user; see FrontendOptions. */
  readonly protocolFeatures?: bigint;
};

/** For messages and help texts. */
export const BLK_BACKEND_FORMS = 'vhost-user:PATH[,server] or vhost-vdpa:DEVICE[,shadow]';

/**
 * Opens a block back-end and starts a guest on it.
 * @throws ConfigError for a back-end that is none for disks; VringError
 *   ERR_VRING_GUEST_NO_BACKEND when nobody listens; what the back-end and `BlkGuest.start` throw.
 */
export async function connectBlkGuest(options: BlkConnectOptions): Promise<BlkGuest> {
  const spec = specOf(options);
  const first = await open(spec, options, options.signal, true);
  const again = { connect: (signal: AbortSignal) => open(spec, options, signal, false) };
  const guest = await BlkGuest.start(first, options, options.reconnect === true ? again : null);
  if (options.reconnect !== true || guest.config.zones === null || guest.hasInflight) return guest;
  const name = guest.backend.description;
  await guest.close();
  const text =
    `${name} serves a zoned disk without INFLIGHT_SHMFD: what it had begun when it died would be ` +
    'given to the next one again, and a write to a zone cannot be done twice; do not reconnect';
  throw new VringError('ERR_VRING_GUEST_FEATURE', text);
}

function specOf({ backend, socket }: BlkConnectOptions): BackendSpec {
  if (typeof backend === 'string') return parseBackendSpec(backend, '--backend');
  if (backend !== undefined) return backend;
  if (socket !== undefined) return { kind: 'vhost-user', socket, server: false };
  throw new ConfigError('--backend', `is missing; expected is ${BLK_BACKEND_FORMS}`);
}

/** `explain`: for people, who have to start something; else the plain error of the attempt. */
async function open(
  spec: BackendSpec,
  options: BlkConnectOptions,
  signal: AbortSignal | undefined,
  explain: boolean,
): Promise<VhostBackend> {
  const { protocolFeatures, onConfigChange } = options;
  if (spec.kind === 'vhost-vdpa') {
    const changes = onConfigChange === undefined ? {} : { onConfigChange };
    return openVdpa(spec.device, spec.shadow, changes);
  }
  if (spec.kind !== 'vhost-user') {
    const text = `${spec.kind} carries no disks; expected is ${BLK_BACKEND_FORMS}`;
    throw new ConfigError('--backend', text);
  }
  const { socket, server } = spec;
  const transport: FrontendOptions = {
    ...(protocolFeatures === undefined ? {} : { protocolFeatures }),
    ...(onConfigChange === undefined ? {} : { events: { configChanged: onConfigChange } }),
  };
  if (server) {
    const wait = signal === undefined ? {} : { signal };
    return VhostUserFrontend.listen(socket, { ...transport, ...wait });
  }
  try {
    return await VhostUserFrontend.connect(socket, transport);
  } catch (error) {
    if (explain && error instanceof SysError) throw noBackend(socket, error);
    throw error;
  }
}

async function openVdpa(
  path: string,
  isShadowed: boolean,
  changes: { onConfigChange?: () => void },
): Promise<VhostBackend> {
  const backend = await VhostVdpaBackend.open(path, changes);
  if (backend.deviceId !== VIRTIO_ID_BLOCK) {
    await backend.close();
    const text = `${path} is a vDPA device of kind ${deviceName(backend.deviceId)}, and no disk`;
    throw new VringError('ERR_VRING_GUEST_CONFIG', text);
  }
  return isShadowed ? new ShadowBackend(backend) : backend;
}

const PROBLEMS: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such socket',
  ECONNREFUSED: 'nobody listens on this socket',
  EACCES: 'no permission to connect to this socket',
};

function noBackend(path: string, error: SysError): VringError {
  const what = PROBLEMS[error.errnoName] ?? error.message;
  const example = `vring serve blk --socket ${path} --memory 64M`;
  const start = `start a back-end first, for example: ${example}`;
  return new VringError('ERR_VRING_GUEST_NO_BACKEND', `${path}: ${what}; ${start}`, {
    recovery: 'retry',
    cause: error,
  });
}
