/** Calls: how a device notifies its driver, by an eventfd or through VDUSE. */
import { VDUSE_IOCTL } from '../wire/vduse.ts';
import { signalEventfd } from './eventfd.ts';
import { native } from './native.ts';

const INJECT_IRQ = VDUSE_IOCTL.VQ_INJECT_IRQ.request;
const queue = new Uint32Array(1);

/**
 * Notifies the driver of a vring. `injectedQueue` is -1 where `callFd` is an eventfd; else `callFd`
 * is a VDUSE device and this the number of the queue whose interrupt is injected. Hot: errors are
 * ignored but for what `signalEventfd` returns: a device that is gone is noticed by who reads it.
 * @syscalls poll write ioctl
 */
export function signalCall(callFd: number, injectedQueue: number): number {
  if (injectedQueue < 0) return signalEventfd(callFd);
  queue[0] = injectedQueue;
  native.ioctlBytes(callFd, INJECT_IRQ, queue);
  return 0;
}
