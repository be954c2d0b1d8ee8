/**
 * Where every path ends: a TAP interface whose other side returns each frame. The kernel's traffic
 * control takes what enters at the interface and sends it out there again, so that one guest sends,
 * receives and checks, and all paths do the same work.
 */
import { spawnSync } from 'node:child_process';
import { VringError } from '../base/errors.ts';
import { findProgram } from '../vmm/index.ts';

/** Frames that wait in the TAP for its reader: as many as a guest has under way. */
const QUEUE_LENGTH = 4096;

export class TapLoop {
  readonly name: string;
  #made = false;

  /**
   * Makes the interface. `name` must not exist yet.
   * @throws VringError ERR_VRING_INTERFACE with what the program said.
   */
  constructor(name: string) {
    this.name = name;
    run('ip', ['tuntap', 'add', 'dev', name, 'mode', 'tap', 'vnet_hdr']);
    this.#made = true;
    try {
      // Nothing of its own shall be on it: no neighbour discovery among the frames.
      spawnSync('sysctl', ['-qw', `net.ipv6.conf.${name}.disable_ipv6=1`]);
      run('ip', ['link', 'set', 'dev', name, 'txqueuelen', String(QUEUE_LENGTH), 'up']);
      returnFrames(name);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Idempotent. */
  close(): void {
    if (this.#made) spawnSync('ip', ['link', 'delete', 'dev', this.name]);
    this.#made = false;
  }
}

/** Lets an interface return what it receives. @throws as TapLoop. */
export function returnFrames(name: string): void {
  run('tc', ['qdisc', 'add', 'dev', name, 'ingress']);
  const all = ['protocol', 'all', 'u32', 'match', 'u32', '0', '0'];
  const back = ['action', 'mirred', 'egress', 'redirect', 'dev', name];
  run('tc', ['filter', 'add', 'dev', name, 'parent', 'ffff:', ...all, ...back]);
}

/** Ends `returnFrames`; none is no error. */
export function keepFrames(name: string): void {
  spawnSync('tc', ['qdisc', 'delete', 'dev', name, 'ingress']);
}

/** Null, or what is missing here and what brings it. */
export function whyNoTapLoop(): string | null {
  if (process.getuid?.() !== 0) return 'TAP interfaces need root (CAP_NET_ADMIN)';
  for (const program of ['ip', 'tc']) {
    if (findProgram(program) === null) {
      return `${program} is not installed: apt-get install --no-install-recommends iproute2`;
    }
  }
  const probe = spawnSync('sh', ['-c', 'exec 3<>/dev/net/tun'], { encoding: 'utf8' });
  return probe.status === 0 ? null : '/dev/net/tun cannot be opened: modprobe tun';
}

function run(program: string, args: readonly string[]): void {
  const { status, stderr } = spawnSync(program, [...args], { encoding: 'utf8' });
  if (status === 0) return;
  const hint = program === 'tc' ? '; tc needs: modprobe sch_ingress cls_u32 act_mirred' : '';
  const text = `${program} ${args.join(' ')}: ${(stderr ?? '').trim()}${hint}`;
  throw new VringError('ERR_VRING_INTERFACE', text);
}
