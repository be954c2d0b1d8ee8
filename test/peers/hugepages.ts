/** Huge pages for DPDK. It shares its memory over memfd, so no hugetlbfs has to be mounted. */
import { readFileSync, writeFileSync } from 'node:fs';

const NR_HUGEPAGES = '/proc/sys/vm/nr_hugepages';

function pages(field: string): number {
  const text = readFileSync('/proc/meminfo', 'utf8');
  return Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(text)?.[1] ?? 0);
}

/**
 * Makes `mebibytes` of 2 MiB pages free. They stay reserved afterwards: giving them back and
 * asking again fragments memory.
 * @throws Error that says what to type when the kernel does not give them.
 */
export function reserveHugePages(mebibytes: number): void {
  const needed = Math.ceil(mebibytes / 2);
  const free = pages('HugePages_Free') - pages('HugePages_Rsvd');
  if (free >= needed) return;
  const total = pages('HugePages_Total') + needed - free;
  try {
    writeFileSync(NR_HUGEPAGES, String(total));
  } catch (cause) {
    throw new Error(`huge pages: as root: echo ${total} > ${NR_HUGEPAGES}`, { cause });
  }
  const now = pages('HugePages_Free') - pages('HugePages_Rsvd');
  if (now >= needed) return;
  throw new Error(
    `huge pages: ${needed} of 2 MiB needed, the kernel gave ${now}; free memory first`,
  );
}
