/**
 * A guest on a back-end that stops and starts as a whole, and never asks for a translation, as
 * vDPA devices do: the in-process device, behind somebody who notes and checks what it is told.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BackendIotlb, VhostBackend } from '../base/vhost-backend.ts';
import { GuestIommu } from './iommu.ts';
import { openInProcessNet } from './in-process-net.ts';
import { NetGuest } from './net-driver.ts';
import { runTraffic } from './traffic.ts';

/** What it was told, in order; the data path is that of the device within. */
class WholeBackend {
  readonly calls: string[] = [];
  status = 0;

  /** `VhostBackend` over another one; stops it whole with the first ring. */
  wrap(inner: VhostBackend, iommu: boolean): VhostBackend {
    const told =
      (name: keyof VhostBackend, check: () => void = () => undefined) =>
      (...args: unknown[]): unknown => {
        this.calls.push([name, ...args.map(String)].join(' '));
        check();
        return (inner[name] as (...all: unknown[]) => unknown)(...args);
      };
    const iotlb: BackendIotlb | null = iommu
      ? {
          asks: false,
          update: (mapping) => {
            this.calls.push('iotlb');
            return inner.iotlb!.update(mapping);
          },
          invalidate: (iova, size) => inner.iotlb!.invalidate(iova, size),
        }
      : null;
    const handler: ProxyHandler<VhostBackend> = {
      get: (target, name: keyof VhostBackend) => {
        if (name === 'restartsWhole') return true;
        if (name === 'iotlb') return iotlb;
        if (name === 'setStatus') {
          return (status: number) => {
            this.calls.push(`setStatus ${status}`);
            this.status = status;
            return target.setStatus(status);
          };
        }
        const value = target[name];
        if (typeof value !== 'function') return value;
        return told(name, () => {
          // Between the end and a reset nothing is taken, as the kernel does (EBUSY).
          if (name === 'setVringBase') assert.ok(this.status < 15, 'bases before DRIVER_OK');
        });
      },
    };
    return new Proxy(inner, handler);
  }
}

for (const mode of [null, 'offset', 'scatter'] as const) {
  for (const packed of [false, true]) {
    const name = `${packed ? 'packed' : 'split'}, ${mode ?? 'no'} IOMMU`;
    test(`stops, and is introduced again: ${name}`, { timeout: 30_000 }, async () => {
      const iommu = mode === null ? null : new GuestIommu(mode);
      const inner = await openInProcessNet({ tap: null, iommu: iommu !== null });
      const whole = new WholeBackend();
      const backend = whole.wrap(inner, iommu !== null);
      iommu?.setPeer(backend.iotlb);
      const link = iommu === null ? {} : { addressSpace: iommu };
      const guest = await NetGuest.start(backend, { notify: 'manual', packed }, link);
      const generate = { sizeBytes: 200, targetMac: guest.mac, frames: 300, window: 32 };
      for (let i = 0; i < 3; i++) {
        const { records } = await runTraffic({ guest, verifyEvery: 1, seconds: 20, generate });
        assert.deepEqual([records.good, records.corrupt, records.lost], [records.sent, 0, 0]);
        await guest.stop();
        whole.calls.length = 0;
        await guest.resume();
        const words = whole.calls.map((call) => call.split(' ').slice(0, 2).join(' '));
        assert.equal(words[0], 'setStatus 0');
        assert.ok(!words.some((word) => word.startsWith('setOwner')), 'it stays ours');
        const at = (word: string): number => words.findIndex((each) => each.startsWith(word));
        const order = ['setFeatures', 'setMemTable', 'setVringBase', 'setStatus 15'];
        if (iommu !== null) order.splice(2, 0, 'iotlb');
        const places = order.map(at);
        assert.ok(!places.includes(-1), words.join(', '));
        assert.deepEqual(
          places,
          [...places].sort((a, b) => a - b),
        );
      }
      assert.equal(iommu?.counters.misses ?? 0, 0, 'nobody had to ask');
      await guest.close();
      assert.equal(guest.failure, null);
    });
  }
}
