/*
 * The arena: one reserved address range per process, into which guest memory and our own scratch
 * memory are mapped. Every byte the data plane may touch has an offset in it.
 *
 * The region table and the fault counters are process-wide and shared by all threads. A region is
 * reference-counted: main maps it, each worker retains it while it uses it, and the last release
 * gives its addresses back to the reservation (PROT_NONE).
 *
 * A peer may truncate a file that we have mapped. The next touch then raises SIGBUS, which would
 * kill the process and every guest with it. The handler below puts private zero pages over the
 * rest of that region and counts, so that only the region's own session breaks.
 *
 * One spin lock guards the table. Holders never touch arena memory, so the handler can take it:
 * the thread it interrupted does not hold it.
 */
#include "vring.h"

#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TIB (1ull << 40)
#define GIB (1ull << 30)
#define ALIGNMENT GIB /* so that an aligned offset is an aligned address, up to 1 GiB pages */
#define MAX_REGIONS 16384
#define STRAY 0 /* faults[0] counts faults outside of every region */

struct region {
  uintptr_t start; /* 0: entry is free */
  uint64_t length; /* whole pages */
  uintptr_t gone;  /* from here on to the end are zero pages of ours; the end while unharmed */
  uint32_t page;   /* bytes */
  uint32_t refs;
  uint32_t generation; /* counts the times that this entry was freed */
};

static struct region regions[MAX_REGIONS]; /* entry 0 is never used */
static uint32_t faults[MAX_REGIONS];
static uint32_t regions_end = 1; /* behind the highest entry ever used */
static uint32_t next_entry = 1;
static atomic_flag table_lock = ATOMIC_FLAG_INIT;

static uintptr_t arena_base;
static uint64_t arena_size;
static atomic_int arena_state; /* 0 none, 1 being made, 2 ready, -errno failed */
static uint64_t system_page;

static struct sigaction previous_bus;
static struct sigaction previous_segv;

static void lock_table(void) {
  while (atomic_flag_test_and_set_explicit(&table_lock, memory_order_acquire)) sched_yield();
}

static void unlock_table(void) {
  atomic_flag_clear_explicit(&table_lock, memory_order_release);
}

static int private_zero(uintptr_t start, uint64_t length, int protection) {
  void *at = mmap((void *)start, length, protection,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (at == MAP_FAILED) return -errno;
  madvise(at, length, MADV_DONTDUMP);
  madvise(at, length, MADV_DONTFORK);
  return 0;
}

/* Makes the page at `address` usable. False: not ours, or the kernel has no memory for it. */
static bool recover(uintptr_t address) {
  if (atomic_load_explicit(&arena_state, memory_order_acquire) != 2) return false;
  if (address < arena_base || address - arena_base >= arena_size) return false;
  bool done = false;
  uint32_t hit = STRAY;
  lock_table();
  for (uint32_t i = 1; i < regions_end; i++) {
    if (regions[i].start == 0 || address < regions[i].start) continue;
    if (address - regions[i].start < regions[i].length) {
      hit = i;
      break;
    }
  }
  if (hit != STRAY) {
    uintptr_t from = address & ~((uintptr_t)regions[hit].page - 1);
    uintptr_t end = regions[hit].start + regions[hit].length;
    if (from < regions[hit].gone) end = regions[hit].gone; /* what is behind is in use already */
    done = private_zero(from, end - from, PROT_READ | PROT_WRITE) == 0;
    if (done && from < regions[hit].gone) regions[hit].gone = from;
  } else {
    /* The reservation is private and anonymous: opening one page of it yields zeros. */
    uintptr_t from = address & ~((uintptr_t)system_page - 1);
    done = mprotect((void *)from, system_page, PROT_READ | PROT_WRITE) == 0;
  }
  if (done) __atomic_fetch_add(&faults[hit], 1, __ATOMIC_SEQ_CST);
  unlock_table();
  return done;
}

/* Hands the signal to whoever was there before us: V8 (wasm), a debugger, or the default. */
static void chain(int number, siginfo_t *info, void *context, struct sigaction *previous) {
  if (previous->sa_flags & SA_SIGINFO) {
    previous->sa_sigaction(number, info, context);
    return;
  }
  if (previous->sa_handler == SIG_IGN && info->si_code <= 0) return;
  if (previous->sa_handler != SIG_IGN && previous->sa_handler != SIG_DFL) {
    previous->sa_handler(number);
    return;
  }
  /* A fault repeats when we return and now kills; a sent signal must be sent again. */
  struct sigaction restore;
  memset(&restore, 0, sizeof restore);
  restore.sa_handler = SIG_DFL;
  sigaction(number, &restore, NULL);
  if (info->si_code <= 0) raise(number);
}

static void on_fault(int number, siginfo_t *info, void *context) {
  int saved = errno;
  if (info->si_code <= 0 || !recover((uintptr_t)info->si_addr)) {
    chain(number, info, context, number == SIGBUS ? &previous_bus : &previous_segv);
  }
  errno = saved;
}

static int install_handlers(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  if (sigaction(SIGBUS, &action, &previous_bus) != 0) return -errno;
  if (sigaction(SIGSEGV, &action, &previous_segv) != 0) return -errno;
  return 0;
}

static int reserve(void) {
  static const uint64_t sizes[] = {16 * TIB, TIB, 64 * GIB};
  system_page = (uint64_t)sysconf(_SC_PAGESIZE);
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    uint64_t total = sizes[i] + ALIGNMENT;
    void *at = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) continue;
    uintptr_t start = ((uintptr_t)at + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1);
    if (start > (uintptr_t)at) munmap(at, start - (uintptr_t)at);
    uintptr_t end = (uintptr_t)at + total;
    if (end > start + sizes[i]) munmap((void *)(start + sizes[i]), end - start - sizes[i]);
    madvise((void *)start, sizes[i], MADV_DONTDUMP);
    madvise((void *)start, sizes[i], MADV_DONTFORK);
    arena_base = start;
    arena_size = sizes[i];
    return install_handlers();
  }
  return -ENOMEM;
}

/* 0 or -errno. Threads that come second wait for the first. */
static int arena_ready(void) {
  for (;;) {
    int state = atomic_load_explicit(&arena_state, memory_order_acquire);
    if (state == 2) return 0;
    if (state < 0) return state;
    int expected = 0;
    if (state == 0 && atomic_compare_exchange_strong(&arena_state, &expected, 1)) {
      int error = reserve();
      atomic_store_explicit(&arena_state, error == 0 ? 2 : error, memory_order_release);
    } else {
      sched_yield();
    }
  }
}

void *vring_arena_at(double offset, double size) {
  /* NaN fails the comparisons. */
  if (!(offset >= 0 && size >= 0 && offset + size <= (double)arena_size)) return NULL;
  return (void *)(arena_base + (uint64_t)offset);
}

char *vring_arena(uint64_t *size) {
  *size = arena_size;
  return (char *)arena_base;
}

/* A free entry, the one that was free for longest in effect. Call with the lock held. */
static uint32_t free_entry(void) {
  for (uint32_t tried = 1; tried < MAX_REGIONS; tried++) {
    uint32_t i = next_entry;
    next_entry = i + 1 < MAX_REGIONS ? i + 1 : 1;
    if (regions[i].start == 0) return i;
  }
  return 0;
}

static bool overlaps(uintptr_t start, uint64_t length) {
  for (uint32_t i = 1; i < regions_end; i++) {
    if (regions[i].start == 0) continue;
    if (start < regions[i].start + regions[i].length && regions[i].start < start + length) {
      return true;
    }
  }
  return false;
}

/* Maps `fd`, or private zeros when it is -1. Returns the region's handle or -errno. */
static int map_region(uint64_t offset, uint64_t size, int fd, uint64_t fd_offset, uint32_t page) {
  int error = arena_ready();
  if (error != 0) return error;
  if (size == 0 || page == 0 || (page & (page - 1)) != 0) return -EINVAL;
  uint64_t length = (size + page - 1) & ~((uint64_t)page - 1);
  if (offset % page != 0 || fd_offset % page != 0) return -EINVAL;
  if (length > arena_size || offset > arena_size - length) return -EFAULT;
  uintptr_t start = arena_base + offset;

  lock_table();
  uint32_t entry = overlaps(start, length) ? MAX_REGIONS : free_entry();
  if (entry == 0 || entry == MAX_REGIONS) {
    unlock_table();
    return entry == 0 ? -ENOSPC : -EEXIST;
  }
  if (fd == -1) {
    error = private_zero(start, length, PROT_READ | PROT_WRITE);
  } else {
    void *at = mmap((void *)start, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                    (off_t)fd_offset);
    error = at == MAP_FAILED ? -errno : 0;
    if (error == 0) madvise(at, length, MADV_DONTDUMP);
    if (error == 0) madvise(at, length, MADV_DONTFORK);
  }
  if (error == 0) {
    uint32_t generation = regions[entry].generation;
    regions[entry] = (struct region){start, length, start + length, page, 1, generation};
    __atomic_store_n(&faults[entry], 0, __ATOMIC_SEQ_CST);
    if (entry >= regions_end) regions_end = entry + 1;
  } else {
    private_zero(start, length, PROT_NONE); /* a failed MAP_FIXED may leave a hole */
  }
  unlock_table();
  return error == 0 ? (int)entry : error;
}

/* Adds `change` to the references; returns how many are left, or -EINVAL for a free entry. */
static int64_t change_refs(uint32_t entry, int change) {
  if (entry == 0 || entry >= MAX_REGIONS) return -EINVAL;
  lock_table();
  struct region *region = &regions[entry];
  if (region->start == 0) {
    unlock_table();
    return -EINVAL;
  }
  region->refs += (uint32_t)change;
  int64_t left = region->refs;
  if (left == 0) {
    int error = private_zero(region->start, region->length, PROT_NONE);
    region->start = 0;
    region->generation++;
    if (error != 0) left = error;
  }
  unlock_table();
  return left;
}

static napi_value arena_wrap(napi_env env, napi_callback_info info) {
  (void)info;
  int error = arena_ready();
  if (error != 0) return vring_number(env, error);
  napi_value buffer;
  napi_status status = napi_create_external_arraybuffer(env, (void *)arena_base, arena_size, NULL,
                                                        NULL, &buffer);
  return status == napi_ok ? buffer : vring_number(env, -ENOMEM);
}

static napi_value faults_wrap(napi_env env, napi_callback_info info) {
  (void)info;
  napi_value buffer;
  napi_status status =
      napi_create_external_arraybuffer(env, faults, sizeof faults, NULL, NULL, &buffer);
  return status == napi_ok ? buffer : vring_number(env, -ENOMEM);
}

/* regionMap(offset, size, fd or -1, fdOffset, pageSize): handle or -errno */
static napi_value region_map(napi_env env, napi_callback_info info) {
  VRING_ARGS(5);
  uint64_t offset, size, fd_offset;
  int32_t fd;
  uint32_t page;
  if (!vring_offset(env, argv[0], &offset) || !vring_offset(env, argv[1], &size)) return NULL;
  if (!vring_int(env, argv[2], &fd) || !vring_offset(env, argv[3], &fd_offset)) return NULL;
  if (!vring_u32(env, argv[4], &page)) return NULL;
  return vring_number(env, map_region(offset, size, fd, fd_offset, page));
}

static napi_value region_retain(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  uint32_t entry;
  if (!vring_u32(env, argv[0], &entry)) return NULL;
  return vring_number(env, change_refs(entry, 1));
}

static napi_value region_release(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  uint32_t entry;
  if (!vring_u32(env, argv[0], &entry)) return NULL;
  return vring_number(env, change_refs(entry, -1));
}

static napi_value region_generation(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  uint32_t entry;
  if (!vring_u32(env, argv[0], &entry)) return NULL;
  if (entry >= MAX_REGIONS) return vring_number(env, -EINVAL);
  lock_table();
  uint32_t generation = regions[entry].generation;
  unlock_table();
  return vring_number(env, generation);
}

/* arenaAddress(): where the arena is in this process; below 2^47, so a number holds it exactly */
static napi_value arena_address(napi_env env, napi_callback_info info) {
  (void)info;
  int error = arena_ready();
  return vring_number(env, error != 0 ? error : (int64_t)arena_base);
}

void vring_register_arena(napi_env env, napi_value exports) {
  vring_export(env, exports, "arenaWrap", arena_wrap);
  vring_export(env, exports, "arenaAddress", arena_address);
  vring_export(env, exports, "faultsWrap", faults_wrap);
  vring_export(env, exports, "regionMap", region_map);
  vring_export(env, exports, "regionRetain", region_retain);
  vring_export(env, exports, "regionRelease", region_release);
  vring_export(env, exports, "regionGeneration", region_generation);
}
