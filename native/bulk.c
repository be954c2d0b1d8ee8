/* Calls that move many ranges of the arena at once. */
#include "vring.h"

#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Ranges fetched ahead of the one that is copied: guests' lines are in other cores' caches. */
#define AHEAD 16

#define LINE 64u
#define HEADER 12u /* struct virtio_net_hdr_mrg_rxbuf, and virtio_net_hdr_v1 */

#define MAX_VECTORS 1024 /* IOV_MAX of Linux */

/* One per way to compile it. */
#define INLINED static inline __attribute__((always_inline))

/* Bytes that one access moves: a register of AVX, two of SSE and of arm64. */
typedef uint64_t block __attribute__((vector_size(32), aligned(1), may_alias));
#define BLOCK sizeof(block)

/*
 * memmove(3), with what a frame's start needs inlined: everything is loaded before anything is
 * stored, the last block overlapping the one before it. A header slot is of 76 bytes or a few more,
 * a small frame of 64 behind its virtio header: three blocks, where four of 16 bytes forwards and
 * four backwards, for all up to 128, took 2.2 ns more of a frame's 35.
 */
INLINED void move_range(char *to, const char *from, size_t size) {
  if (size >= 2 * BLOCK && size <= 3 * BLOCK) {
    block a = *(const block *)from, b = *(const block *)(from + BLOCK);
    block c = *(const block *)(from + size - BLOCK);
    *(block *)to = a, *(block *)(to + BLOCK) = b;
    *(block *)(to + size - BLOCK) = c;
  } else {
    memmove(to, from, size);
  }
}

/*
 * A virtio-net header in front of a frame at the start of a cache line, where DPDK's drivers have
 * it: 12 bytes that are alone in their line, and nearly always say what they said before. Written
 * only where they differ: the line stays in the driver's cache, which reads it for every frame.
 */
INLINED int is_header_apart(uint64_t to) { return (to & (LINE - 1)) == LINE - HEADER; }

INLINED void move_header(char *to, const char *from) {
  uint64_t now, first;
  uint32_t now_last, last;
  memcpy(&now, to, 8), memcpy(&now_last, to + 8, 4);
  memcpy(&first, from, 8), memcpy(&last, from + 8, 4);
  if (now == first && now_last == last) return;
  memcpy(to, &first, 8), memcpy(to + 8, &last, 4);
}

/* How many of the ranges lay outside the arena and were skipped. */
INLINED int32_t move_each(char *arena, uint64_t arena_bytes, const double *source,
                          const double *target, const double *length, uint32_t count) {
  int32_t refused = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (i + AHEAD < count) {
      /* A wrong address may be fetched: prefetching does not fault. */
      const char *next_from = arena + (int64_t)source[i + AHEAD];
      const char *next_to = arena + (int64_t)target[i + AHEAD];
      __builtin_prefetch(next_from, 0);
      __builtin_prefetch(next_from + 64, 0);
      if (is_header_apart((uint64_t)(int64_t)target[i + AHEAD])) __builtin_prefetch(next_to, 0);
      else __builtin_prefetch(next_to, 1);
      __builtin_prefetch(next_to + 64, 1);
    }
    /* What is negative or no number becomes a huge offset. */
    uint64_t from = (uint64_t)(int64_t)source[i];
    uint64_t to = (uint64_t)(int64_t)target[i];
    uint64_t size = (uint64_t)(int64_t)length[i];
    if (size <= INT32_MAX && from <= arena_bytes - size && to <= arena_bytes - size) {
      if (is_header_apart(to) && size > HEADER) {
        move_header(arena + to, arena + from);
        to += HEADER, from += HEADER, size -= HEADER;
      }
      move_range(arena + to, arena + from, size);
    } else {
      refused++;
    }
  }
  return refused;
}

static int32_t move_plain(char *arena, uint64_t arena_bytes, const double *source,
                          const double *target, const double *length, uint32_t count) {
  return move_each(arena, arena_bytes, source, target, length, count);
}

/* The one for this processor, chosen when the addon is loaded. */
static int32_t (*move_ranges)(char *, uint64_t, const double *, const double *, const double *,
                              uint32_t) = move_plain;

#ifdef __x86_64__
__attribute__((target("avx2"))) static int32_t move_avx2(char *arena, uint64_t arena_bytes,
                                                         const double *source,
                                                         const double *target,
                                                         const double *length, uint32_t count) {
  return move_each(arena, arena_bytes, source, target, length, count);
}
#endif

/*
 * copyRanges(columns: ArrayBuffer, capacity, count): how many ranges lay outside the arena and
 * were skipped. The buffer holds source offsets, target offsets and lengths, doubles, `capacity`
 * of each. One buffer, because each argument costs some 20 ns.
 */
static napi_value copy_ranges(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  void *data;
  size_t bytes;
  uint32_t capacity, count;
  if (napi_get_arraybuffer_info(env, argv[0], &data, &bytes) != napi_ok) {
    napi_throw_type_error(env, "ERR_VRING_NATIVE_ARGUMENT", "expected an ArrayBuffer");
    return NULL;
  }
  if (!vring_u32(env, argv[1], &capacity) || !vring_u32(env, argv[2], &count)) return NULL;
  if (count > capacity || bytes / 24 < capacity) return vring_number(env, -EINVAL);
  const double *source = data;
  const double *target = source + capacity;
  const double *length = target + capacity;
  uint64_t arena_bytes;
  char *const arena = vring_arena(&arena_bytes);
  return vring_number(env, move_ranges(arena, arena_bytes, source, target, length, count));
}

/* writevArena(fd, offsets: Float64Array, lengths: Int32Array, first, count): bytes or -errno */
static napi_value writev_arena(napi_env env, napi_callback_info info) {
  VRING_ARGS(5);
  int32_t fd;
  void *offset_data, *length_data;
  size_t offset_bytes, length_bytes;
  uint32_t first, count;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  if (!vring_bytes(env, argv[1], &offset_data, &offset_bytes)) return NULL;
  if (!vring_bytes(env, argv[2], &length_data, &length_bytes)) return NULL;
  if (!vring_u32(env, argv[3], &first) || !vring_u32(env, argv[4], &count)) return NULL;
  uint64_t end = (uint64_t)first + count;
  if (count > MAX_VECTORS || end > offset_bytes / 8 || end > length_bytes / 4) {
    return vring_number(env, -EINVAL);
  }
  const double *offsets = (const double *)offset_data + first;
  const int32_t *lengths = (const int32_t *)length_data + first;
  struct iovec vectors[MAX_VECTORS];
  for (uint32_t i = 0; i < count; i++) {
    vectors[i].iov_base = vring_arena_at(offsets[i], lengths[i]);
    vectors[i].iov_len = (size_t)lengths[i];
    if (vectors[i].iov_base == NULL) return vring_number(env, -EFAULT);
  }
  return vring_result(env, writev(fd, vectors, (int)count));
}

/* readArena(fd, offset, size): bytes or -errno */
static napi_value read_arena(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t fd;
  uint64_t offset, size;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  if (!vring_offset(env, argv[1], &offset) || !vring_offset(env, argv[2], &size)) return NULL;
  void *to = vring_arena_at((double)offset, (double)size);
  if (to == NULL) return vring_number(env, -EFAULT);
  return vring_result(env, read(fd, to, size));
}

void vring_register_bulk(napi_env env, napi_value exports) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) move_ranges = move_avx2;
#endif
  vring_export(env, exports, "copyRanges", copy_ranges);
  vring_export(env, exports, "writevArena", writev_arena);
  vring_export(env, exports, "readArena", read_arena);
}
