/**
 * What the back-end does for the messages that share more than memory and rings: dirty log,
 * inflight region, backend channel, IOTLB, postcopy, device state. See backend-handlers.ts.
 */
import { ProtocolError } from '../base/errors.ts';
import { MAX_LOG_BYTES } from '../base/limits.ts';
import { createMemfd } from '../sys/index.ts';
import { IOTLB_INVALIDATE, type IotlbEvent } from '../wire/vhost-user-parse.ts';
import { InflightDescription, VHOST_USER_VRING_NOFD_MASK } from '../wire/vhost-user.ts';
import { type Handler, takeEventFd, u64Reply } from './backend-handlers.ts';
import { takeSocket } from './device-handlers.ts';
import { checkLogCovers, mapEnd } from './dirty-log.ts';
import { checkInflightShape, inflightBytes, InflightRegion } from './inflight-region.ts';
import { checkIotlbType } from './iotlb-control.ts';
import { SharedArea } from './session-area.ts';

/** What more a front-end says than can be used is not mapped: see MAX_LOG_BYTES. */
function atMost(sizeBytes: bigint, limit: number): bigint {
  return sizeBytes < limit ? sizeBytes : BigInt(limit);
}

/* Dirty log */

/**
 * Answered always and by an empty payload, which is what QEMU and libvhost-user agreed on. Also
 * comes while rings log: the log grows with the guest's memory.
 */
export const setLogBase: Handler<{ sizeBytes: bigint; fdOffset: bigint }> = async (
  { vrings },
  { request, value, fds },
) => {
  const bytes = atMost(value.sizeBytes, MAX_LOG_BYTES);
  const log = SharedArea.map(request, 'log', fds[0]!, bytes, value.fdOffset);
  const { around } = vrings;
  try {
    if (around.maps !== null) checkLogCovers(log, mapEnd(around.maps.gpa), 'guest memory');
    fds.shift();
  } catch (error) {
    log.unmap();
    throw error;
  }
  const replace = (): void => {
    around.log?.close();
    around.log = log;
  };
  if (around.logging) await vrings.withAllStopped(true, replace);
  else replace();
  return new Uint8Array(0);
};

/** Kept and never signalled: the bitmap says all, and front-ends look at it when they like. */
export const setLogFd: Handler<null> = (session, { request, fds }) => {
  const fd = takeEventFd(request, fds);
  session.logFd?.close();
  session.logFd = fd;
};

/* Inflight region */

export const getInflightFd: Handler<InflightDescription> = (session, { request, value }) => {
  const { target, vrings } = session;
  checkInflightShape(request, value, target.queueCount);
  const bytes = inflightBytes(value, vrings.around.features);
  const fd = createMemfd('vring-inflight', bytes, { seal: true });
  const { queueCount, queueSize } = value;
  const mapBytes = BigInt(bytes);
  const reply = { mapBytes, fdOffset: 0n, queueCount, queueSize, padding: 0 };
  return { payload: InflightDescription.encode(reply), fds: [fd] };
};

/** The region that GET_INFLIGHT_FD made, in this process or in the one before. */
export const setInflightFd: Handler<InflightDescription> = (
  { target, vrings },
  { request, value, fds },
) => {
  checkInflightShape(request, value, target.queueCount);
  const { features } = vrings.around;
  // Before SET_FEATURES the format is not known: the rings look again when they start.
  const due = features === null ? 1 : inflightBytes(value, features);
  if (value.mapBytes < BigInt(due)) {
    const { mapBytes, queueCount, queueSize } = value;
    const what = `${queueCount} queues of ${queueSize}`;
    const problem = `${mapBytes}, expected at least ${due} for ${what}`;
    throw new ProtocolError('ERR_VRING_INFLIGHT', request, 'mmap size', problem);
  }
  const bytes = atMost(value.mapBytes, inflightBytes(value, null));
  const area = SharedArea.map(request, 'inflight', fds[0]!, bytes, value.fdOffset);
  fds.shift();
  vrings.around.inflight?.close(); // no ring runs: the table says so
  const { queueCount, queueSize } = value;
  vrings.around.inflight = new InflightRegion(area, { queueCount, queueSize });
};

/* Backend channel and IOTLB */

export const setBackendReqFd: Handler<null> = async (session, { request, fds }) => {
  session.requests.open({ socket: takeSocket(request, fds) });
  // What rings wait for could not be asked before.
  session.vrings.missAgain();
};

/** Answered always. When an invalidation is, nobody uses what it named any more. */
export const iotlbMessage: Handler<IotlbEvent> = async (session, { value }) => {
  const { iotlb, vrings, target } = session;
  checkIotlbType(value);
  if (value.type === IOTLB_INVALIDATE) {
    const { iova, sizeBytes } = iotlb.invalidate(value);
    if (sizeBytes === 0) return;
    await vrings.retranslated(iova, sizeBytes);
    await target.invalidateIotlb?.(iova, sizeBytes);
    return;
  }
  const { gpaAddresses, maps } = vrings.around;
  const entry = iotlb.update(value, gpaAddresses ? (maps?.gpa ?? null) : (maps?.uva ?? null));
  // It may move what a ring has: then the ring begins again with the new place.
  await vrings.retranslated(entry.iova, entry.sizeBytes);
  await target.updateIotlb?.(entry);
  await vrings.retryWaiting();
};

/* Postcopy */

export const postcopyAdvise: Handler<null> = ({ postcopyControl }, { request }) => ({
  payload: new Uint8Array(0),
  fds: [postcopyControl.advise(request).dup()],
});

export const postcopyListen: Handler<null> = ({ postcopyControl }) => postcopyControl.listen();

export const postcopyEnd: Handler<null> = async ({ postcopyControl, vrings }) => {
  postcopyControl.end();
  await release(vrings);
  return u64Reply(0);
};

/** The front-end has what it needs to bring pages: rings may touch guest memory. */
export async function release(vrings: {
  around: { held: string | null };
  retryWaiting(): Promise<void>;
}): Promise<void> {
  vrings.around.held = null;
  await vrings.retryWaiting();
}

/* Device state */

const STATE_FAILED = 1n;

/** The fd that came is used: none of ours goes back (bit 8). */
export const setDeviceStateFd: Handler<{ direction: number }> = async (
  { deviceState },
  { value, fds },
) => {
  try {
    await deviceState.begin(value.direction, fds);
    return u64Reply(VHOST_USER_VRING_NOFD_MASK);
  } catch (refusal) {
    if (!(refusal instanceof ProtocolError)) throw refusal;
    return { payload: u64Reply(STATE_FAILED | VHOST_USER_VRING_NOFD_MASK), refusal };
  }
};

export const checkDeviceState: Handler<null> = async ({ deviceState }) => {
  const refusal = await deviceState.check();
  if (refusal === null) return u64Reply(0);
  return { payload: u64Reply(STATE_FAILED), refusal };
};
