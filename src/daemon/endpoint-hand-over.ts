/**
 * The vhost-user part of a hand-over, which ports and disks have in common: what of an endpoint
 * goes over, and how a successor takes it. Descriptors are named by their position in a message.
 */
import { VringError } from '../base/errors.ts';
import type { Fd } from '../sys/index.ts';
import {
  type BackendEndpoint,
  type EndpointOptions,
  type MemorySnapshot,
  PreparedMemory,
  type SessionSnapshot,
} from '../vhost-user/index.ts';
import type { ReceivedFds, SentFds } from './hand-over-channel.ts';
import type { SessionPart } from './hand-over-format.ts';

/**
 * Memory of the session that runs, for a successor to map meanwhile; null without a session. `of`
 * says which of many keeps all from being handed over.
 */
export function planMemory(
  endpoint: BackendEndpoint | null,
  fds: SentFds,
  of: string,
): SessionPart | null {
  try {
    const prepared = endpoint?.prepare() ?? null;
    return prepared && { state: prepared.memory, fds: prepared.fds.map((fd) => fds.add(fd)) };
  } catch (error) {
    throw named(error, of);
  }
}

export function takeMemory(part: SessionPart, fds: ReceivedFds, of: string): PreparedMemory {
  const memory = part.state as MemorySnapshot['memory'];
  return PreparedMemory.map({ memory, fds: part.fds.map((at) => fds.take(at, of)) });
}

export type EndpointPart = {
  readonly listener: number | null;
  readonly session: SessionPart | null;
};

/** Its rings stand still, and nobody is served. Undone by `resume` of the endpoint. */
export async function suspendEndpoint(
  endpoint: BackendEndpoint,
  fds: SentFds,
  of: string,
): Promise<EndpointPart> {
  const { listener, session } = await endpoint.suspend().catch((error: unknown) => {
    throw named(error, of);
  });
  return {
    listener: listener && fds.add(listener),
    session: session && { state: session.state, fds: session.fds.map((fd) => fds.add(fd)) },
  };
}

/** What `EndpointOptions.adopt` takes. */
export function takeSession(
  part: SessionPart,
  take: (at: number) => Fd,
  prepared: PreparedMemory | null,
): NonNullable<EndpointOptions['adopt']> {
  const session = {
    state: part.state as SessionSnapshot['state'],
    fds: part.fds.map(take),
  };
  return { session, ...(prepared === null ? {} : { prepared }) };
}

function named(error: unknown, of: string): unknown {
  if (!(error instanceof VringError)) return error;
  const { code, recovery, message } = error;
  return new VringError(code, `${of}: ${message}`, { recovery, cause: error });
}
