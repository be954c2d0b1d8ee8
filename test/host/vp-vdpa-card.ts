/** The card under test of `cards=vp-vdpa-pair`, from its PCI driver to a vDPA device and back. */
import { existsSync, readlinkSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import {
  addVdpaDevice,
  bindVdpaDevice,
  deleteVdpaDevice,
  loadModules,
  type VdpaBusDriver,
} from './inside.ts';
import { VP_VDPA_PAIR } from './machine-command.ts';

const PCI_DRIVER = 'vp-vdpa';

/**
 * Gives the card to vp_vdpa and makes a vDPA device of it, bound to `driver`. Returns its name;
 * `releaseVpVdpaCard` ends the device.
 */
export async function takeVpVdpaCard(driver: VdpaBusDriver): Promise<string> {
  await loadModules('vp_vdpa', driver);
  const { pci } = VP_VDPA_PAIR.device;
  const device = `/sys/bus/pci/devices/${pci}`;
  if (!existsSync(device)) {
    throw new Error(
      `this machine has no card at ${pci}: '@test-host cards=vp-vdpa-pair' asks for it`,
    );
  }
  const bound = existsSync(`${device}/driver`) ? basename(readlinkSync(`${device}/driver`)) : null;
  if (bound !== PCI_DRIVER) {
    // At boot virtio-pci took every virtio card that there is.
    writeFileSync(`${device}/driver_override`, PCI_DRIVER);
    if (bound !== null) writeFileSync(`${device}/driver/unbind`, pci);
    writeFileSync(`/sys/bus/pci/drivers/${PCI_DRIVER}/bind`, pci);
  }
  const name = await addVdpaDevice('vpcard', `pci/${pci}`);
  bindVdpaDevice(name, driver);
  return name;
}

export async function releaseVpVdpaCard(name: string): Promise<void> {
  await deleteVdpaDevice(name);
}
