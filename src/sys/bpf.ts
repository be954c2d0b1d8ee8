/**
 * bpf(2), as far as XDP sockets need it: one map, one program, one link. Whatever the kernel reads
 * by address lies in arena memory that the caller lends.
 */
import * as xdp from '../wire/xdp.ts';
import { arena, arenaHostAddress } from './arena.ts';
import { check, EAGAIN, sysError } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

/** What `scratchAt` must hold in `updateXskMap` and `loadXdpProgram`. */
export const BPF_SCRATCH_BYTES = 16384;

const LOAD_TRIES = 50;
const INSNS_AT = 0;
const LICENSE_AT = 1024;
const LOG_AT = 2048;
const LOG_BYTES = BPF_SCRATCH_BYTES - LOG_AT;

/**
 * A map from queues to XDP sockets.
 * @throws SysError EPERM (CAP_BPF), EINVAL (a kernel without XDP sockets).
 * @syscalls bpf
 */
export function createXskMap(entries: number): Fd {
  const attributes = xdp.BpfMapCreate.encode({
    mapType: xdp.BPF_MAP_TYPE_XSKMAP,
    keySize: 4,
    valueSize: 4,
    maxEntries: entries,
    mapFlags: 0,
    innerMapFd: 0,
    numaNode: 0,
    mapName: nameBytes('vring_xsks'),
    mapIfindex: 0,
  });
  const result = native.bpf(xdp.BPF_MAP_CREATE, attributes);
  const number = check('bpf(BPF_MAP_CREATE)', result, () => `XSKMAP of ${entries} entries`);
  return new Fd(number, 'XSKMAP');
}

/**
 * Frames of `queue` go to `socket` from here on. The socket is bound already.
 * @throws SysError E2BIG, EBADF, EOPNOTSUPP.
 * @syscalls bpf
 */
export function updateXskMap(map: Fd, queue: number, socket: Fd, scratchAt: number): void {
  const { view } = arena();
  view.setUint32(scratchAt, queue, true);
  view.setUint32(scratchAt + 8, socket.number, true);
  const address = arenaHostAddress() + BigInt(scratchAt);
  const attributes = xdp.BpfMapUpdate.encode({
    mapFd: map.number,
    padding: 0,
    key: address,
    value: address + 8n,
    flags: 0n,
  });
  const result = native.bpf(xdp.BPF_MAP_UPDATE_ELEM, attributes);
  check('bpf(BPF_MAP_UPDATE_ELEM)', result, () => `queue ${queue}`);
}

/**
 * The XDP program: frames go to the socket that `map` has for their queue, and to the kernel's own
 * stack where it has none. `frags`: it may be given frames of several buffers (Linux 5.18).
 * @throws SysError EPERM (CAP_BPF, CAP_NET_ADMIN), EACCES or EINVAL with the verifier's words.
 * @syscalls bpf
 */
export function loadXdpProgram(map: Fd, frags: boolean, scratchAt: number): Fd {
  const { view, bytes } = arena();
  const program = assemble(map.number);
  bytes.set(program, scratchAt + INSNS_AT);
  // The kernel lets call its helpers for XDP whatever the licence says; this is ours.
  bytes.set(new TextEncoder().encode('Apache-2.0\0'), scratchAt + LICENSE_AT);
  view.setUint8(scratchAt + LOG_AT, 0);
  const address = arenaHostAddress() + BigInt(scratchAt);
  const attributes = xdp.BpfProgLoad.encode({
    progType: xdp.BPF_PROG_TYPE_XDP,
    insnCnt: program.length / xdp.BPF_INSN_BYTES,
    insns: address + BigInt(INSNS_AT),
    license: address + BigInt(LICENSE_AT),
    logLevel: 1,
    logSize: LOG_BYTES,
    logBuf: address + BigInt(LOG_AT),
    kernVersion: 0,
    progFlags: frags ? xdp.BPF_F_XDP_HAS_FRAGS : 0,
    progName: nameBytes('vring_xsk'),
    progIfindex: 0,
    expectedAttachType: xdp.BPF_XDP,
  });
  // The verifier gives up when a signal is pending (kernel/bpf/verifier.c), of which V8 has many.
  let result = -EAGAIN;
  for (let tries = 0; result === -EAGAIN && tries < LOAD_TRIES; tries++) {
    result = native.bpf(xdp.BPF_PROG_LOAD, attributes);
  }
  if (result >= 0) return new Fd(result, 'XDP program');
  const log = bytes.subarray(scratchAt + LOG_AT, scratchAt + BPF_SCRATCH_BYTES);
  const words = new TextDecoder().decode(log.slice(0, Math.max(0, log.indexOf(0)))).trim();
  throw sysError('bpf(BPF_PROG_LOAD)', result, words === '' ? 'an XDP program' : words);
}

/**
 *   r2 = ctx->rx_queue_index; r1 = map; r3 = XDP_PASS; return bpf_redirect_map(r1, r2, r3)
 *
 * The last argument is what the helper returns for a queue that has no socket (Linux 5.3).
 */
function assemble(mapFd: number): Uint8Array {
  const instructions: [code: number, to: number, from: number, offset: number, value: number][] = [
    [xdp.BPF_LDX_MEM_W, 2, 1, xdp.XDP_MD_RX_QUEUE_INDEX_AT, 0],
    [xdp.BPF_LD_IMM_DW, 1, xdp.BPF_PSEUDO_MAP_FD, 0, mapFd],
    [0, 0, 0, 0, 0], // the upper half of the immediate
    [xdp.BPF_ALU64_MOV_K, 3, 0, 0, xdp.XDP_PASS],
    [xdp.BPF_JMP_CALL, 0, 0, 0, xdp.BPF_FUNC_redirect_map],
    [xdp.BPF_JMP_EXIT, 0, 0, 0, 0],
  ];
  const program = new Uint8Array(instructions.length * xdp.BPF_INSN_BYTES);
  const view = new DataView(program.buffer);
  for (const [i, [code, to, from, offset, value]] of instructions.entries()) {
    const at = i * xdp.BPF_INSN_BYTES;
    view.setUint8(at, code);
    view.setUint8(at + 1, (from << 4) | to);
    view.setInt16(at + 2, offset, true);
    view.setInt32(at + 4, value, true);
  }
  return program;
}

/**
 * Attaches the program to an interface for as long as the link is open: it goes with the last
 * descriptor, so with a process that is killed, too. `flags`: XDP_FLAGS_*.
 * @throws SysError EBUSY or EEXIST (another program is there), EOPNOTSUPP (the driver has no XDP),
 *   EINVAL (the MTU is too large for it), EPERM.
 * @syscalls bpf
 */
export function attachXdp(program: Fd, interfaceIndex: number, flags: number): Fd {
  const attributes = xdp.BpfLinkCreate.encode({
    progFd: program.number,
    targetIfindex: interfaceIndex,
    attachType: xdp.BPF_XDP,
    flags,
  });
  const result = native.bpf(xdp.BPF_LINK_CREATE, attributes);
  const number = check('bpf(BPF_LINK_CREATE)', result, () => `interface ${interfaceIndex}`);
  return new Fd(number, 'XDP link');
}

/** A name of up to 15 bytes, shown by bpftool. */
function nameBytes(name: string): Uint8Array {
  const bytes = new Uint8Array(16);
  bytes.set(new TextEncoder().encode(name));
  return bytes;
}
