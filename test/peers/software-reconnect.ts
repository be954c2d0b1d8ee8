/** Software guests that talk in a ring while their switch is killed and started again. */
import { Scratch, waitFor } from './scratch.ts';
import { Host, ip4 } from './software-guest.ts';
import { SwitchProcess } from './switch.ts';

/** Milliseconds after the kill. */
export type PortsRestored = {
  readonly number: number;
  /** The new switch has made its sockets and answers. */
  readonly switchMs: number;
  /** Each guest has had an answer to a request that it sent after the kill. */
  readonly allMs: number;
  /** The same for half of them. */
  readonly halfMs: number;
};

const REQUEST_TIMEOUT_MS = 100;

export async function restorePorts(
  guests: number,
  times: number,
  onRestored: (restored: PortsRestored) => void,
): Promise<void> {
  await using scratch = new Scratch();
  const name = (i: number): string => `p${i}`;
  const ports = Array.from(
    { length: guests },
    (_, i) => `${name(i)}=vhost-user:${scratch.path(name(i))}`,
  );
  const control = scratch.path('control');
  let vswitch = await SwitchProcess.start({ ports, control });
  scratch.own({ close: () => vswitch.close() });
  const hosts: Host[] = [];
  for (let i = 0; i < guests; i++) {
    const host = await Host.join(scratch.path(name(i)), i + 1, { reconnect: true });
    hosts.push(scratch.own(host));
  }
  /** When each guest sent its last request that was answered. */
  const answered = hosts.map(() => 0);
  const end = new AbortController();
  const talk = hosts.map(async (host, i) => {
    while (!end.signal.aborted) {
      const sentAt = performance.now();
      const heard = await host.hears(ip4(((i + 1) % guests) + 1), 56, REQUEST_TIMEOUT_MS);
      if (heard) answered[i] = sentAt;
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  });
  const after = (time: number): number => answered.filter((at) => at > time).length;
  try {
    for (let number = 1; number <= times; number++) {
      const before = performance.now();
      await waitFor('traffic of all', 30_000, () => after(before) === guests);
      const killedAt = performance.now();
      const elapsed = (): number => Math.round(performance.now() - killedAt);
      process.kill(vswitch.pid, 'SIGKILL');
      await vswitch.ended();
      let halfMs = 0;
      const watch = setInterval(() => {
        if (halfMs === 0 && after(killedAt + 5) >= guests / 2) halfMs = elapsed();
      }, 2);
      vswitch = await SwitchProcess.start({ ports, control });
      const switchMs = elapsed();
      while (after(killedAt + 5) < guests) await new Promise((resolve) => setTimeout(resolve, 2));
      const allMs = elapsed();
      clearInterval(watch);
      onRestored({ number, switchMs, allMs, halfMs: halfMs === 0 ? allMs : halfMs });
    }
  } finally {
    end.abort();
    await Promise.all(talk);
  }
}
