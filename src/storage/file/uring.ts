/**
 * An io_uring and the requests in it, as typed arrays like the rings of a guest. State only; what
 * works on it is in uring.hot.ts and uring-engine.ts.
 *
 * A request has a slot from `submit` to `reap`. A slot has one entry in the ring at a time, and the
 * ring as many entries as there are slots: it is never full.
 */
import { SysError } from '../../base/errors.ts';
import {
  arena,
  arenaHostAddress,
  createEventfd,
  type Fd,
  mapPrivateAt,
  mapUring,
  registerUring,
  releaseRegion,
  setupUring,
  unmapUring,
} from '../../sys/index.ts';
import type { Value } from '../../wire/struct.ts';
import {
  IORING_FEAT_NODROP,
  IORING_FEAT_SINGLE_MMAP,
  IORING_OFF_SQ_RING,
  IORING_OFF_SQES,
  IORING_REGISTER_EVENTFD,
  IORING_SETUP_CQSIZE,
  IORING_SETUP_DEFER_TASKRUN,
  IORING_SETUP_SINGLE_ISSUER,
  IORING_SETUP_TASKRUN_FLAG,
  URING_CQE_BYTES,
  URING_SQE_BYTES,
  type UringParams,
} from '../../wire/io-uring.ts';

/** Requests in a ring: a power of two. More wait in the guest's rings. */
export const URING_SLOTS = 256;

/** Segments of a request that goes through the ring; one with more is done by a call. */
export const URING_SEGMENTS = 256;

const VECTOR_BYTES = 16; // struct iovec

/** Arena addresses that a ring needs for its vectors; whoever opens the image reserves them. */
export const URING_PLACE_BYTES = URING_SLOTS * URING_SEGMENTS * VECTOR_BYTES;

/** Completions run when we enter the kernel, and a flag of the ring says that some wait for it. */
const LATE_COMPLETIONS =
  IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;

type Params = Value<typeof UringParams.fields>;

export class Uring {
  readonly number: number;
  /** Signalled with each completion, unless the ring's flags say no. */
  readonly completion: Fd;
  /** The two rings, as words, and where in them what lies. */
  readonly ring: Int32Array;
  readonly sqTail: number;
  readonly sqFlags: number;
  readonly cqHead: number;
  readonly cqTail: number;
  readonly cqFlags: number;
  readonly cqes: number;
  readonly cqMask: number;
  readonly sqes: Int32Array;
  /** `struct iovec` of all slots, as words. */
  readonly vectors: Int32Array;
  /** Address of arena offset 0, and of `vectors`, for the kernel. */
  readonly arenaAddress: number;
  readonly vectorsAddress: number;
  /** Entries that the kernel has not been told of. */
  unsubmitted = 0;
  /** Next entry to write, and next completion to read: free-running. */
  tail = 0;
  head = 0;

  // Of each slot.
  /** File that it goes to, operation, flags of the transfer, vectors left. */
  readonly fd = new Int32Array(URING_SLOTS);
  readonly isWrite = new Uint8Array(URING_SLOTS);
  readonly rwFlags = new Int32Array(URING_SLOTS);
  readonly vecFirst = new Int32Array(URING_SLOTS);
  readonly vecCount = new Int32Array(URING_SLOTS);
  /** Position of what is left, and how much it is. */
  readonly position = new Float64Array(URING_SLOTS);
  readonly left = new Float64Array(URING_SLOTS);

  /** What the last `harvest` found. */
  readonly doneSlot = new Int32Array(URING_SLOTS);
  readonly doneResult = new Int32Array(URING_SLOTS);

  readonly #fd: Fd;
  readonly #mapped: ArrayBuffer[] = [];
  #region = 0;

  /**
   * In the thread that will use it. `at`: arena offset of URING_PLACE_BYTES that are reserved.
   * @throws SysError: this kernel has no io_uring, forbids it, or has no memory for it.
   */
  constructor(at: number) {
    const { fd, params } = setup();
    this.#fd = fd;
    this.number = fd.number;
    this.completion = createEventfd('completions of io_uring');
    try {
      registerUring(fd, IORING_REGISTER_EVENTFD, Int32Array.of(this.completion.number), 1);
      this.ring = this.#map(bytesOf(params), IORING_OFF_SQ_RING);
      this.sqes = this.#map(params.sqEntries * URING_SQE_BYTES, IORING_OFF_SQES);
      this.#region = mapPrivateAt(at, URING_PLACE_BYTES);
      this.vectors = new Int32Array(arena().buffer, at, URING_PLACE_BYTES >> 2);
    } catch (error) {
      this.close();
      throw error;
    }
    this.arenaAddress = Number(arenaHostAddress());
    this.vectorsAddress = this.arenaAddress + at;
    this.sqTail = params.sqTail >> 2;
    this.sqFlags = params.sqFlags >> 2;
    this.cqHead = params.cqHead >> 2;
    this.cqTail = params.cqTail >> 2;
    this.cqFlags = params.cqFlags >> 2;
    this.cqes = params.cqCqes >> 2;
    this.cqMask = (params.cqEntries - 1) | 0;
    // Entry i of the ring is always sqe i.
    for (let i = 0; i < URING_SLOTS; i++) this.ring[(params.sqArray >> 2) + i] = i;
  }

  /** Idempotent; when the kernel has nothing to do. */
  close(): void {
    for (const memory of this.#mapped.splice(0)) unmapUring(memory);
    if (this.#region !== 0) releaseRegion(this.#region);
    this.#region = 0;
    this.completion.close();
    this.#fd.close();
  }

  #map(sizeBytes: number, at: number): Int32Array {
    const memory = mapUring(this.#fd, sizeBytes, at);
    this.#mapped.push(memory);
    return new Int32Array(memory);
  }
}

/** Can this process have a ring? Null, or why not. */
export function uringProblem(): SysError | null {
  try {
    setup().fd.close();
    return null;
  } catch (error) {
    if (error instanceof SysError) return error;
    throw error;
  }
}

/** @throws SysError. */
function setup(): { fd: Fd; params: Params } {
  const open = (flags: number): { fd: Fd; params: Params } =>
    setupUring(URING_SLOTS, flags | IORING_SETUP_CQSIZE, 2 * URING_SLOTS);
  let ring: { fd: Fd; params: Params };
  try {
    ring = open(LATE_COMPLETIONS);
  } catch (error) {
    if (!(error instanceof SysError) || error.errnoName !== 'EINVAL') throw error;
    ring = open(0); // before Linux 6.1
  }
  const needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP;
  const isWhole = (ring.params.features & needed) === needed;
  if (isWhole && ring.params.sqEntries === URING_SLOTS) return ring;
  ring.fd.close();
  const text = 'before Linux 5.5, whose io_uring loses completions';
  throw new SysError('io_uring_setup', 38, 'ENOSYS', text);
}

/** Both rings lie in one mapping. */
function bytesOf(params: Params): number {
  const submission = params.sqArray + 4 * params.sqEntries;
  const completion = params.cqCqes + URING_CQE_BYTES * params.cqEntries;
  return Math.max(submission, completion);
}
