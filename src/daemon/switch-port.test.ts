import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { NetPortSettings } from '../devices/net/index.ts';
import { type PortEntry, setRules, type SwitchPort } from './switch-port.ts';

test('rules that one worker refuses are those of none', async () => {
  const told: NetPortSettings[] = [];
  const worker = {
    request: async <T>(_op: string, payload: unknown): Promise<T> => {
      const { settings } = payload as { settings: NetPortSettings };
      told.push(settings);
      if (settings.policy === 'power') throw new Error('no descriptor is left');
      return undefined as T;
    },
  };
  const vlan = { mode: 'access', vid: 1 } as const;
  const port = { number: 3, config: { vlan, macLimit: 16 } } as unknown as SwitchPort;
  const entry: PortEntry = { port, vlan, policy: 'latency' };
  const change = { vlan: { mode: 'access', vid: 2 }, policy: 'power' } as const;
  await assert.rejects(setRules(worker, entry, change), /no descriptor is left/);
  assert.deepEqual(
    told.splice(0).map((each) => [each.vlan, each.policy]),
    [
      [change.vlan, 'power'],
      [vlan, 'latency'],
    ],
  );
  assert.deepEqual([entry.vlan, entry.policy], [vlan, 'latency']);
  await setRules(worker, entry, { vlan: change.vlan });
  assert.equal(told.length, 1);
  assert.deepEqual([entry.vlan, entry.policy], [change.vlan, 'latency']);
});
