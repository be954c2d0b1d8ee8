/*
 * What a frame costs a back-end at least: two rings, and a copy of the same bytes between them.
 *
 *   ring-floor split|packed BYTES SECONDS DEVICE_CORE DRIVER_CORE
 *
 * One thread is the driver and does what DPDK's virtio driver does in testpmd's `io` forwarding:
 * bursts of 32, 512 frames on their way, the header of what came is read, transmitted buffers are
 * taken back when their slots are needed. The other is the device: up to 64 frames of the transmit
 * ring are copied, header and all, into the next buffers of the receive ring, and both used rings
 * are published. Neither checks anything, there is no switch, and every chain is one descriptor.
 *
 * Prints JSON: nanoseconds per frame of the device's rounds that found work, and frames of such a
 * round. In the end every frame is looked at: a floor that loses bytes is none. Run by ring-floor.ts.
 */
#define _GNU_SOURCE
#include <linux/virtio_ring.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RING 1024u
#define BURST 32u       /* of the driver */
#define ROUND 64u       /* of the device */
#define IN_FLIGHT 512u
#define HEADER 12u      /* struct virtio_net_hdr_mrg_rxbuf, in front of an aligned frame */
#define DATA_AT 256u    /* DPDK: 128 bytes of struct rte_mbuf, 128 of head room */
#define BUFFER_BYTES (DATA_AT + 2048u)
#define BUFFERS (2u * RING + BURST) /* both rings full, and a burst in the driver's hands */
#define LINE 64u
#define INLINE static inline __attribute__((always_inline))

enum { WARM, MEASURE, DRAIN, END };

/* Memory of a ring, of either format. */
struct ring {
  struct vring_desc *desc;
  struct vring_avail *avail;
  struct vring_used *used;
  struct vring_packed_desc *packed;
};

/* Free-running positions of one side; the sides share no line of them. */
struct side {
  struct ring ring;
  uint32_t next_avail, next_used;
  char *buffer[RING]; /* the driver's, by slot: where the header is */
} __attribute__((aligned(LINE)));

static struct ring rings[2]; /* receive, transmit */
static char *buffers;
static uint32_t frame_bytes;
static _Alignas(LINE) atomic_uint phase;
static _Alignas(LINE) atomic_uint ready;
static uint64_t busy_ticks, frames, rounds;

static double now_ns(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (double)at.tv_sec * 1e9 + (double)at.tv_nsec;
}

#ifdef __x86_64__
#define ticks() __builtin_ia32_rdtsc()
#define relax() __builtin_ia32_pause()
#else
#define ticks() ((uint64_t)now_ns())
#define relax() (void)0
#endif
#define acquire(cell) __atomic_load_n(&(cell), __ATOMIC_ACQUIRE)
#define release(cell, value) __atomic_store_n(&(cell), (value), __ATOMIC_RELEASE)

static void fail(const char *what) {
  fprintf(stderr, "ring-floor: %s\n", what);
  exit(1);
}

static char *shared_memory(size_t bytes) {
  size_t huge = 2u << 20;
  bytes = (bytes + huge - 1) & ~(huge - 1);
  char *at = mmap(NULL, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) fail("mmap");
  at = (char *)(((uintptr_t)at + huge - 1) & ~(huge - 1));
  madvise(at, bytes, MADV_HUGEPAGE); /* as guests and DPDK have it; slower without */
  memset(at, 0, bytes);
  return at;
}

/* Flags of a packed descriptor at a position: 2.8.1, the wrap counter starts with 1. */
INLINE uint16_t packed_flags(uint32_t at, int used) {
  uint16_t wrap = !(at / RING & 1);
  return (uint16_t)(wrap << VRING_PACKED_DESC_F_AVAIL |
                    (used ? wrap : !wrap) << VRING_PACKED_DESC_F_USED);
}

#define OWNER_BITS (1 << VRING_PACKED_DESC_F_AVAIL | 1 << VRING_PACKED_DESC_F_USED)

INLINE int has_flags(struct ring *ring, uint32_t at, int used) {
  return (acquire(ring->packed[at % RING].flags) & OWNER_BITS) == packed_flags(at, used);
}

/* Device: addresses and lengths of up to `max` descriptors that the driver offers. */
INLINE uint32_t look(struct side *of, int packed, uint32_t max, char **at, uint32_t *len) {
  struct ring *ring = &of->ring;
  uint32_t count = 0;
  if (packed) {
    for (; count < max && has_flags(ring, of->next_avail + count, 0); count++) {
      struct vring_packed_desc *desc = &ring->packed[(of->next_avail + count) % RING];
      at[count] = (char *)(uintptr_t)desc->addr, len[count] = desc->len;
    }
    return count;
  }
  count = (uint16_t)(acquire(ring->avail->idx) - of->next_avail);
  if (count > max) count = max;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t head = ring->avail->ring[(of->next_avail + i) % RING];
    at[i] = (char *)(uintptr_t)ring->desc[head].addr, len[i] = ring->desc[head].len;
  }
  return count;
}

/* Device: gives the first `count` back; `len` is what was written into each. */
INLINE void give(struct side *of, int packed, uint32_t count, const uint32_t *len) {
  struct ring *ring = &of->ring;
  for (uint32_t i = 0; i < count && !packed; i++) {
    uint32_t at = of->next_avail + i;
    ring->used->ring[at % RING].id = ring->avail->ring[at % RING];
    ring->used->ring[at % RING].len = len ? len[i] : 0;
  }
  for (uint32_t i = count; i-- > 0 && packed;) { /* the first last: nobody looks behind it */
    uint32_t at = of->next_avail + i;
    if (len) ring->packed[at % RING].len = len[i]; /* the id stays: one descriptor, in order */
    release(ring->packed[at % RING].flags, packed_flags(at, 1));
  }
  of->next_avail += count;
  if (!packed) release(ring->used->idx, (uint16_t)of->next_avail);
}

/* Driver: offers buffers from their headers on. */
INLINE void offer(struct side *of, int packed, uint32_t count, char **at, uint32_t len, int write) {
  struct ring *ring = &of->ring;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t slot = (of->next_avail + i) % RING;
    of->buffer[slot] = at[i];
    if (packed) {
      ring->packed[slot].addr = (uintptr_t)at[i];
      ring->packed[slot].len = len, ring->packed[slot].id = (uint16_t)slot;
    } else {
      ring->desc[slot].addr = (uintptr_t)at[i];
      ring->desc[slot].len = len, ring->desc[slot].flags = write ? VRING_DESC_F_WRITE : 0;
      ring->avail->ring[slot] = (uint16_t)slot;
    }
  }
  for (uint32_t i = count; i-- > 0 && packed;) {
    uint16_t flags = packed_flags(of->next_avail + i, 0);
    release(ring->packed[(of->next_avail + i) % RING].flags,
            (uint16_t)(flags | (write ? VRING_DESC_F_WRITE : 0)));
  }
  of->next_avail += count;
  if (!packed) release(ring->avail->idx, (uint16_t)of->next_avail);
}

/* Driver: buffers that came back, at most `max`. */
INLINE uint32_t reap(struct side *of, int packed, uint32_t max, char **at) {
  struct ring *ring = &of->ring;
  uint32_t count = 0, top = packed ? max : (uint16_t)(acquire(ring->used->idx) - of->next_used);
  if (top > max) top = max;
  for (; count < top; count++) {
    uint32_t slot = (of->next_used + count) % RING;
    if (packed && !has_flags(ring, of->next_used + count, 1)) break;
    at[count] = of->buffer[packed ? ring->packed[slot].id : ring->used->ring[slot].id];
  }
  of->next_used += count;
  return count;
}

static void run_on(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  if (pthread_setaffinity_np(pthread_self(), sizeof set, &set) != 0) fail("no such core");
  atomic_fetch_add(&ready, 1);
  while (atomic_load(&ready) < 2) relax();
}

INLINE void play_device(int packed) {
  static struct side rx, tx;
  rx.ring = rings[0], tx.ring = rings[1];
  char *from[ROUND], *to[ROUND];
  uint32_t len[ROUND], room[ROUND], was = WARM;
  for (uint32_t in = WARM; in != END; was = in) {
    in = atomic_load_explicit(&phase, memory_order_relaxed);
    if (in == MEASURE && was == WARM) busy_ticks = frames = rounds = 0;
    uint64_t start = ticks();
    uint32_t count = look(&tx, packed, ROUND, from, len);
    count = count == 0 ? 0 : look(&rx, packed, count, to, room);
    if (count == 0) {
      relax();
      continue;
    }
    /* Two lines of each buffer. All lines of a long frame, some frames ahead, made it slower:
       1500 bytes 86 to 108 ns, where this is 82 to 97. */
    for (uint32_t i = 0; i < count; i++) {
      __builtin_prefetch(from[i]), __builtin_prefetch(from[i] + HEADER);
      __builtin_prefetch(to[i], 1), __builtin_prefetch(to[i] + HEADER, 1);
    }
    for (uint32_t i = 0; i < count; i++) {
      memcpy(to[i], from[i], HEADER);
      memcpy(to[i] + HEADER, from[i] + HEADER, len[i] - HEADER); /* both aligned */
    }
    give(&tx, packed, count, NULL);
    give(&rx, packed, count, len);
    if (in != MEASURE) continue;
    busy_ticks += ticks() - start, frames += count, rounds++;
  }
}

static void *device(void *argument) {
  int *arguments = argument; /* packed, core */
  run_on(arguments[1]);
  if (arguments[0]) play_device(1);
  else play_device(0);
  return NULL;
}

static char *frame_at(char *header) { return header + HEADER; }

/* Whether each of the frames that were sent first is there once, and whole. */
static void check_frames(char **held) {
  uint8_t seen[IN_FLIGHT] = {0};
  for (uint32_t i = 0; i < IN_FLIGHT; i++) {
    uint16_t number;
    memcpy(&number, frame_at(held[i]), sizeof number);
    if (number >= IN_FLIGHT || seen[number]++) fail("a frame came back twice, or none at all");
    for (uint32_t at = sizeof number; at < frame_bytes; at++) {
      if ((uint8_t)frame_at(held[i])[at] != (uint8_t)(number + at)) fail("a frame was changed");
    }
  }
}

INLINE void play_driver(int packed) {
  static struct side rx, tx;
  static char *spare[BUFFERS], *held[IN_FLIGHT];
  rx.ring = rings[0], tx.ring = rings[1];
  char *burst[BURST];
  uint32_t spares = 0, holding = 0, tx_free = RING, headers = 0;
  for (uint32_t i = 0; i < BUFFERS; i++) {
    spare[spares++] = buffers + i * BUFFER_BYTES + DATA_AT - HEADER;
  }
  spares -= RING, offer(&rx, packed, RING, spare + spares, HEADER + 1514, 1);
  for (uint16_t number = 0; number < IN_FLIGHT; number++, tx_free--) {
    char *frame = frame_at(spare[--spares]);
    for (uint32_t at = 0; at < frame_bytes; at++) frame[at] = (char)(number + at);
    memcpy(frame, &number, sizeof number);
    offer(&tx, packed, 1, &spare[spares], HEADER + frame_bytes, 0);
  }
  while (holding < IN_FLIGHT) {
    uint32_t draining = atomic_load_explicit(&phase, memory_order_relaxed) == DRAIN;
    uint32_t count = reap(&rx, packed, BURST, burst);
    if (count == 0) {
      relax();
      continue;
    }
    for (uint32_t i = 0; i < count; i++) __builtin_prefetch(burst[i]);
    for (uint32_t i = 0; i < count; i++) headers += (uint8_t)burst[i][HEADER - 2]; /* num_buffers */
    if (draining) {
      for (uint32_t i = 0; i < count; i++) held[holding++] = burst[i];
      continue; /* a receive ring of twice the frames needs no more buffers */
    }
    spares -= count, offer(&rx, packed, count, spare + spares, HEADER + 1514, 1);
    while (tx_free < count) {
      uint32_t back = reap(&tx, packed, BURST, spare + spares);
      spares += back, tx_free += back;
    }
    offer(&tx, packed, count, burst, HEADER + frame_bytes, 0), tx_free -= count;
  }
  if (headers != 0) fail("a header was changed");
  check_frames(held);
  atomic_store(&phase, END);
}

static void *driver(void *argument) {
  int *arguments = argument;
  run_on(arguments[2]);
  if (arguments[0]) play_driver(1);
  else play_driver(0);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  int arguments[3] = {strcmp(argv[1], "packed") == 0, atoi(argv[4]), atoi(argv[5])};
  frame_bytes = (uint32_t)atoi(argv[2]);
  double seconds = atof(argv[3]);
  if (frame_bytes < LINE || frame_bytes > 1514 || seconds <= 0) return 2;
  size_t part = RING * 16 + 4096; /* room for any of a ring's areas, on pages of its own */
  char *memory = shared_memory(6 * part + BUFFERS * (size_t)BUFFER_BYTES);
  for (int i = 0; i < 2; i++, memory += 3 * part) {
    struct ring ring = {(void *)memory, (void *)(memory + part), (void *)(memory + 2 * part),
                        (void *)memory};
    rings[i] = ring;
  }
  buffers = memory;
  pthread_t threads[2];
  if (pthread_create(&threads[0], NULL, device, arguments) != 0) fail("no thread");
  if (pthread_create(&threads[1], NULL, driver, arguments) != 0) fail("no thread");
  usleep(100000);
  atomic_store(&phase, MEASURE);
  double start = now_ns();
  uint64_t from = ticks();
  usleep((useconds_t)(seconds * 1e6));
  double ns_per_tick = (now_ns() - start) / (double)(ticks() - from);
  atomic_store(&phase, DRAIN);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  if (frames == 0) fail("no frame was moved");
  printf("{\"ring\":\"%s\",\"bytes\":%u,\"nsPerFrame\":%.2f,\"framesPerRound\":%.1f}\n",
         arguments[0] ? "packed" : "split", frame_bytes,
         (double)busy_ticks * ns_per_tick / (double)frames, (double)frames / (double)rounds);
  return 0;
}
