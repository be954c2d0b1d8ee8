/**
 * The one workload of the comparison: a software guest sends numbered frames into a path that
 * returns them, as many as go with a window under way, and checks what comes back; then one frame
 * at a time, to see how long it is under way.
 */
import { VringError } from '../base/errors.ts';
import {
  buildTestFrame,
  NO_OFFLOAD,
  type NetGuest,
  runTraffic,
  type TrafficReport,
} from '../guest/index.ts';
import { formatMac, parseMac } from '../wire/ethernet.ts';
import { NetHeader } from '../wire/virtio-net.ts';
import { type Figures, type LoopFigures, percentile, type RoundTripFigures } from './figures.ts';
import { addUsage, processTasks, TaskMeter, type Usage, vhostKernelThreads } from './tasks.ts';

export type WorkloadOptions = {
  /** A guest on the path, closed by the workload. */
  readonly connect: (notify: 'manual' | 'interrupt') => Promise<NetGuest>;
  /** Processes that do the device's work; empty where the kernel or this process does. */
  readonly devicePids: readonly number[];
  readonly sizes: readonly number[];
  readonly seconds: number;
  readonly window: number;
  readonly trips: number;
};

/**
 * A group that nobody is in: every switch floods it, no stack takes it, and vdpa_sim_net, which
 * returns nothing else than its own address and groups, returns it.
 */
const TARGET_MAC = '03:00:00:00:00:fe';
const WARM_UP_SECONDS = 0.3;
const TRIP_TIMEOUT_MS = 1000;
const SETTLE_MS = 300;
const NS_PER_S = 1e9;

/** @throws VringError ERR_VRING_COMPARE when nothing comes back; what the guest throws. */
export async function runWorkload(options: WorkloadOptions): Promise<Figures> {
  const guest = await options.connect('manual');
  const loops: LoopFigures[] = [];
  try {
    await loop(guest, options.sizes[0]!, options, WARM_UP_SECONDS);
    for (const size of options.sizes) loops.push(await measuredLoop(guest, size, options));
  } finally {
    await guest.close();
  }
  const sleeper = await options.connect('interrupt');
  try {
    return { loops, roundTrip: await roundTrips(sleeper, options.trips) };
  } finally {
    await sleeper.close();
  }
}

async function measuredLoop(
  guest: NetGuest,
  sizeBytes: number,
  options: WorkloadOptions,
): Promise<LoopFigures> {
  const { own, vhost } = processTasks(process.pid);
  const kernel = vhostKernelThreads(process.pid);
  const deviceTids = [
    ...vhost,
    ...kernel,
    ...options.devicePids.flatMap((p) => processTasks(p).own),
  ];
  const guestMeter = new TaskMeter(own);
  const deviceMeter = new TaskMeter(deviceTids);
  const report = await loop(guest, sizeBytes, options, options.seconds);
  const guestUsage = guestMeter.stop();
  const deviceUsage = deviceMeter.stop();
  if (report.records.good === 0) {
    const text = `${guest.backend.description}: of ${report.sent.frames} frames none came back`;
    throw new VringError('ERR_VRING_COMPARE', text);
  }
  return figuresOf(sizeBytes, report, guestUsage, deviceTids.length === 0 ? null : deviceUsage);
}

function loop(
  guest: NetGuest,
  sizeBytes: number,
  { window }: WorkloadOptions,
  seconds: number,
): Promise<TrafficReport> {
  return runTraffic({ guest, seconds, generate: { sizeBytes, targetMac: TARGET_MAC, window } });
}

function figuresOf(
  sizeBytes: number,
  report: TrafficReport,
  guest: Usage,
  device: Usage | null,
): LoopFigures {
  const { records, seconds, sent, received } = report;
  const frames = received.frames;
  const all = device === null ? guest : addUsage(guest, device);
  return {
    sizeBytes,
    seconds,
    sent: sent.frames,
    returned: records.good,
    lost: records.lost,
    corrupt: records.corrupt,
    framesPerSecond: frames / seconds,
    guestCpuNs: (guest.cpuSeconds * NS_PER_S) / frames,
    deviceCpuNs: device === null ? null : (device.cpuSeconds * NS_PER_S) / frames,
    wakeupsPerFrame: all.wakeups / frames,
    systemCallsPerFrame: all.systemCalls === null ? null : all.systemCalls / frames,
  };
}

async function roundTrips(guest: NetGuest, trips: number): Promise<RoundTripFigures> {
  const frame = buildTestFrame({
    sizeBytes: 64,
    sourceMac: parseMac(guest.mac) ?? new Uint8Array(6),
    targetMac: parseMac(TARGET_MAC) ?? new Uint8Array(6),
    flow: 0,
    run: 1,
    vlan: null,
    gso: 'none',
    gsoSize: 0,
  }).bytes.subarray(NetHeader.size);
  const times: number[] = [];
  await pause(SETTLE_MS); // whoever polls has gone to sleep
  for (let n = 0; n < trips; n++) times.push(await oneTrip(guest, frame));
  times.sort((a, b) => a - b);
  return {
    trips,
    minUs: times[0]!,
    medianUs: percentile(times, 0.5),
    p99Us: percentile(times, 0.99),
  };
}

function oneTrip(guest: NetGuest, frame: Uint8Array): Promise<number> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      guest.onFrame = null;
      const path = guest.backend.description;
      const text = `${path}: a frame did not come back in ${TRIP_TIMEOUT_MS} ms`;
      reject(new VringError('ERR_VRING_COMPARE', text));
    }, TRIP_TIMEOUT_MS);
    const sentAt = performance.now();
    guest.onFrame = (bytes) => {
      if (formatMac(bytes.subarray(0, 6)) !== TARGET_MAC) return; // not ours
      clearTimeout(timer);
      guest.onFrame = null;
      resolve((performance.now() - sentAt) * 1000);
    };
    guest.send(frame, NO_OFFLOAD);
  });
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
