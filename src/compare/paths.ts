/** The paths that are compared, in the order of the table. */
import { accessSync, constants, existsSync } from 'node:fs';
import { join } from 'node:path';
import { VringError } from '../base/errors.ts';
import { awaitVdpaPresence, bindVdpa, VdpaNetlink } from '../vhost-kernel/index.ts';
import { VringService } from '../vmm/index.ts';
import type { ComparedPath, OpenPath } from './path.ts';
import { keepFrames, returnFrames } from './tap-loop.ts';

const nothingToClose = async (): Promise<void> => {};

const SIMULATOR = 'vdpasim_net';
const PRESENCE_MS = 10_000;

/** The traditional path: the VMM itself does the device's work. */
export const IN_PROCESS: ComparedPath = {
  id: 'in-process',
  description: {
    name: 'virtio (in-process)',
    backend: 'the process that owns the guest',
    dataPlane: 'that process, on every kick',
    controlPlane: 'function calls',
    kick: 'trap into the process',
    mechanism: 'no hand-over at all',
    fits: 'simple devices, debugging',
  },
  exception: null,
  why: async () => null,
  open: async (tap) => ({ backend: `in-process:${tap}`, devicePids: [], close: nothingToClose }),
};

export const VHOST_NET: ComparedPath = {
  id: 'vhost-net',
  description: {
    name: 'vhost-net',
    backend: 'the host kernel',
    dataPlane: 'a kernel thread (vhost-PID)',
    controlPlane: 'ioctl on /dev/vhost-net',
    kick: 'eventfd',
    mechanism: 'kernel module, eventfd, TAP',
    fits: 'VMs in general, kernel networking',
  },
  exception: null,
  why: async () => deviceNode('/dev/vhost-net', 'modprobe vhost_net'),
  open: async (tap) => ({ backend: `vhost-net:${tap}`, devicePids: [], close: nothingToClose }),
};

export const VHOST_USER: ComparedPath = {
  id: 'vhost-user',
  description: {
    name: 'vhost-user',
    backend: 'a process of its own',
    dataPlane: 'a thread of vring switch (polls, then sleeps)',
    controlPlane: 'messages on a Unix socket',
    kick: 'eventfd, or none while polled',
    mechanism: 'Unix socket, shared memory, eventfd',
    fits: 'virtual switches, NFV, storage targets',
  },
  exception: null,
  why: async () => null,
  open: async (tap, folder) => {
    const socket = join(folder, 'guest.sock');
    const ports = ['--port', `guest=vhost-user:${socket}`, '--port', `up=tap:${tap}`];
    const control = join(folder, 'switch.sock');
    return served(['switch', '--json', '--quiet', '--control', control, ...ports], () => {
      return `vhost-user:${socket}`;
    });
  },
};

/** A vDPA device made by our own process. */
export const VDPA_VDUSE: ComparedPath = {
  id: 'vdpa-vduse',
  description: {
    name: 'vhost-vDPA on VDUSE',
    backend: 'a process of its own, behind the kernel',
    dataPlane: 'a thread of vring serve (polls, then sleeps)',
    controlPlane: 'ioctl on /dev/vhost-vdpa-N, passed on by the kernel',
    kick: 'eventfd',
    mechanism: 'vDPA bus, IOTLB, VDUSE',
    fits: 'software devices for containers and VMs alike',
  },
  exception: null,
  why: async () =>
    deviceNode('/dev/vduse/control', 'modprobe vduse; Debian builds none, see docs/test-host.md') ??
    (await managementDevice('vduse', 'vduse')) ??
    moduleOf('vhost_vdpa'),
  open: async (tap) => {
    const name = `vrcmp-${process.pid}`;
    const words = ['serve', 'net', '--vduse', name, '--tap', tap, '--bind', 'vhost', '--json'];
    return served(words, (ready) => vdpaBackend((ready as { node: string | null }).node));
  },
};

export const VDPA_SIM: ComparedPath = {
  id: 'vdpa-sim',
  description: {
    name: 'vhost-vDPA on vdpa_sim_net',
    backend: "the kernel's simulator",
    dataPlane: 'a kernel work queue',
    controlPlane: 'ioctl on /dev/vhost-vdpa-N',
    kick: 'eventfd',
    mechanism: 'vDPA bus, IOTLB',
    fits: 'tests of vDPA front-ends',
  },
  exception: 'the simulator returns frames itself and reaches no wire',
  why: async () => (await managementDevice(SIMULATOR, 'vdpa_sim_net')) ?? moduleOf('vhost_vdpa'),
  open: async () => {
    const name = `vrcmp-${process.pid}`;
    const netlink = await VdpaNetlink.open();
    const remove = once(async () => {
      await netlink.delete(name);
      await netlink.close();
    });
    try {
      await netlink.add({ name, management: SIMULATOR });
      await bindVdpa(name, 'vhost_vdpa');
      const { node } = await awaitVdpaPresence(name, PRESENCE_MS);
      return { backend: vdpaBackend(node), devicePids: [], close: remove };
    } catch (error) {
      await remove().catch(() => undefined); // it may not have come to be
      throw error;
    }
  },
};

/** A vDPA device that the user names: hardware, or `vp_vdpa` on a card. */
export function vdpaDevice(node: string, farEnd: string | null): ComparedPath {
  return {
    id: 'vdpa-device',
    description: {
      name: `vhost-vDPA ${node}`,
      backend: 'the device',
      dataPlane: 'the device',
      controlPlane: `ioctl on ${node}`,
      kick: 'doorbell or eventfd',
      mechanism: 'vDPA bus, IOMMU',
      fits: 'hardware with virtio rings',
    },
    exception:
      farEnd === null
        ? 'whatever the device is connected to returns the frames'
        : `the device's wire ends in ${farEnd}, which returns the frames`,
    why: async () => deviceNode(node, 'modprobe vhost_vdpa, and bind a vDPA device to it'),
    open: async () => {
      if (farEnd !== null) returnFrames(farEnd);
      const close = async (): Promise<void> => {
        if (farEnd !== null) keepFrames(farEnd);
      };
      return { backend: `vhost-vdpa:${node}`, devicePids: [], close };
    },
  };
}

/** All that need no device of the user's. */
export const PATHS: readonly ComparedPath[] = [
  IN_PROCESS,
  VHOST_NET,
  VHOST_USER,
  VDPA_VDUSE,
  VDPA_SIM,
];

async function served(
  words: readonly string[],
  backendOf: (ready: unknown) => string,
): Promise<OpenPath> {
  const service = new VringService(`vring ${words[0]}`, words);
  const close = once(() => service.end());
  try {
    const ready = await service.ready();
    return { backend: backendOf(ready), devicePids: [service.pid], close };
  } catch (error) {
    await close();
    throw error;
  }
}

function vdpaBackend(node: string | null): string {
  if (node !== null) return `vhost-vdpa:${node}`;
  throw new VringError('ERR_VRING_COMPARE', 'vhost_vdpa made no /dev/vhost-vdpa node in time');
}

function once(work: () => Promise<unknown>): () => Promise<void> {
  let done: Promise<unknown> | null = null;
  return async () => {
    await (done ??= work());
  };
}

function deviceNode(path: string, remedy: string): string | null {
  if (!existsSync(path)) return `${path} does not exist: ${remedy}`;
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return null;
  } catch {
    return `${path}: no permission; run as root`;
  }
}

async function managementDevice(name: string, module: string): Promise<string | null> {
  try {
    const netlink = await VdpaNetlink.open();
    const devices = await netlink.managementDevices();
    await netlink.close();
    if (devices.some((device) => device.name === name)) return null;
  } catch {
    // No vDPA bus at all: the same remedy.
  }
  return `the kernel has no vDPA management device ${name}: modprobe ${module}`;
}

function moduleOf(name: string): string | null {
  return existsSync(`/sys/module/${name}`) ? null : `${name} is not loaded: modprobe ${name}`;
}
