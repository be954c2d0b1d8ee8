/**
 * The test host's initramfs: busybox, the few modules that mount what is shared, and a layer of
 * files that goes on top of it: the kernel's module folder with our modules in it, and the
 * script that runs then. It is some three MiB and written anew for every boot.
 */
import { readFileSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { writeCpio, type CpioEntry } from '../../src/vmm/cpio.ts';
import { moduleLoadOrder, readModule, type InstalledKernel } from '../../src/vmm/kernel-modules.ts';
import { readStaticBusybox } from '../../src/vmm/linux-guest.ts';
import { FIRST_INIT, LAYER, SECOND_INIT_PATH, secondInit, type SecondInitOptions } from './init.ts';

/** What must be there before the shared tree is; everything else is loaded by name, from there. */
const FIRST_MODULES = ['virtio_pci', 'virtio_console', 'virtiofs', 'overlay'];

const APPLETS = ['sh', 'echo', 'insmod', 'ip', 'mkdir', 'mount', 'mv', 'switch_root', 'umount'];

/** `modulesPath` is what `testHostModules` built. */
export function testHostInitramfs(
  kernel: InstalledKernel,
  modulesPath: string,
  options: SecondInitOptions,
): Uint8Array {
  const entries: CpioEntry[] = [];
  const folders = new Set<string>();
  const folder = (path: string): void => {
    const above = path.lastIndexOf('/');
    if (above > 0) folder(path.slice(0, above));
    if (folders.has(path)) return;
    folders.add(path);
    entries.push({ kind: 'directory', path, mode: 0o755 });
  };
  const file = (path: string, mode: number, bytes: Uint8Array): void => {
    folder(path.slice(0, Math.max(0, path.lastIndexOf('/'))) || 'etc');
    entries.push({ kind: 'file', path, mode, bytes });
  };

  for (const path of ['bin', 'dev', 'etc', 'modules', 'proc']) folder(path);
  entries.push({ kind: 'character', path: 'dev/console', mode: 0o600, major: 5, minor: 1 });
  file('bin/busybox', 0o755, readStaticBusybox());
  for (const applet of APPLETS) {
    entries.push({ kind: 'symlink', path: `bin/${applet}`, target: 'busybox' });
  }
  const order = moduleLoadOrder(kernel.modulesPath, FIRST_MODULES);
  for (const path of order) {
    file(`modules/${basename(path)}`, 0o644, readModule(join(kernel.modulesPath, path)));
  }
  file('etc/modules', 0o644, Buffer.from(order.map((path) => `${basename(path)}\n`).join('')));
  file('init', 0o755, Buffer.from(FIRST_INIT));

  // Not /lib/modules: /lib is a link in Debian's tree, and this layer must not replace it.
  const layered = `${LAYER}/usr/lib/modules/${kernel.release}`;
  for (const name of readdirSync(modulesPath, { recursive: true, encoding: 'utf8' })) {
    const isFile = name.startsWith('modules.') || name.endsWith('.ko');
    if (isFile) file(`${layered}/${name}`, 0o644, readFileSync(join(modulesPath, name)));
  }
  file(`${LAYER}/${SECOND_INIT_PATH}`, 0o755, Buffer.from(secondInit(options)));
  return writeCpio(entries);
}
