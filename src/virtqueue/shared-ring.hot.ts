/**
 * A ring that several workers write: its positions lie in shared memory, behind a fair lock, and
 * are in the `DeviceQueue` of a worker while it holds the lock. A ring of one worker has none of
 * this. No chain may be out when the lock is released.
 */
import { lockTicket, unlockTicket } from '../sys/ticket-lock.hot.ts';
import type { DeviceQueue } from './device-queue.ts';

const LOCK = 0;
const VALID = 2; // 1: the words behind it hold a position
const FAULT = 3;
const NEXT_AVAIL = 4;
const NEXT_USED = 5;
const AVAIL_WRAP = 6;
const USED_WRAP = 7;
const SINCE_CALL = 8;
const CALL_KNOWN = 9;

/** A cache line: no two rings' locks are in one. */
export const SHARED_RING_WORDS = 16;

/** Returns with the lock held and `q` where the ring stands. */
export function lockRing(q: DeviceQueue, words: Int32Array): void {
  lockTicket(words, LOCK);
  if (words[VALID] === 0) return; // nobody was here: the queue stands where it was attached
  q.fault = words[FAULT];
  q.nextAvail = words[NEXT_AVAIL];
  q.nextUsed = words[NEXT_USED];
  q.availWrap = words[AVAIL_WRAP];
  q.usedWrap = words[USED_WRAP];
  q.sinceCall = words[SINCE_CALL];
  q.callKnown = words[CALL_KNOWN];
}

/** What `q` says is the ring's position from now on. */
export function unlockRing(q: DeviceQueue, words: Int32Array): void {
  words[VALID] = 1;
  words[FAULT] = q.fault;
  words[NEXT_AVAIL] = q.nextAvail;
  words[NEXT_USED] = q.nextUsed;
  words[AVAIL_WRAP] = q.availWrap;
  words[USED_WRAP] = q.usedWrap;
  words[SINCE_CALL] = q.sinceCall;
  words[CALL_KNOWN] = q.callKnown;
  unlockTicket(words, LOCK);
}
