/** Anonymous shared memory as a file. */
import {
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  MFD_HUGETLB,
  MFD_HUGE_2MB,
} from '../wire/linux.ts';
import { check } from './errors.ts';
import { Fd } from './fd.ts';
import { native } from './native.ts';

export type MemfdOptions = {
  /** 2 MiB pages; the size must be a multiple, and the pages reserved (vm.nr_hugepages). */
  hugePages?: boolean;
  /** Nobody can change its size any more. */
  seal?: boolean;
};

/**
 * Shared memory of `sizeBytes` zeros.
 * @throws SysError ENOSYS, EINVAL, ENOMEM, EMFILE.
 * @syscalls memfd_create ftruncate fcntl
 */
export function createMemfd(name: string, sizeBytes: number, options: MemfdOptions = {}): Fd {
  const huge = options.hugePages === true ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
  const flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | huge;
  const fd = new Fd(
    check('memfd_create', native.memfdCreate(name, flags), () => name),
    name,
  );
  try {
    truncate(fd.number, sizeBytes);
    if (options.seal === true) {
      const seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
      check('fcntl(F_ADD_SEALS)', native.addSeals(fd.number, seals), () => name);
    }
  } catch (error) {
    fd.close();
    throw error;
  }
  return fd;
}

/**
 * Sets the size of a file.
 * @throws SysError EPERM when it is sealed, EINVAL when it is no file.
 * @syscalls ftruncate
 */
export function truncate(fd: number, sizeBytes: number): void {
  check('ftruncate', native.truncate(fd, sizeBytes), () => `fd ${fd} to ${sizeBytes} bytes`);
}
