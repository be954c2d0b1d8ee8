/*
 * What random I/O of 4 KiB on a file costs without anybody around it: one thread that keeps DEPTH
 * requests under way, by io_uring, or one after the other by preadv2 and pwritev2.
 *
 *   uring-cost FILE DEPTH SECONDS read|write buffered|direct uring|calls
 *
 * Prints requests per second. Compiled and run by bench/blk.ts; the same places, sizes and rings
 * as our engine has them, with no ring of a guest, no checks, and no second thread.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define MAX_DEPTH 256

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint32_t state = 0x9e3779b9;

static uint64_t place(uint64_t blocks) {
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return ((uint64_t)state * blocks >> 32) * BLOCK;
}

static double by_calls(int fd, char *data, uint64_t blocks, int depth, double seconds, int write) {
  double start = now(), end = start;
  uint64_t done = 0;
  while (end - start < seconds) {
    for (int i = 0; i < depth; i++, done++) {
      struct iovec vector = {data + i * BLOCK, BLOCK};
      off_t at = (off_t)place(blocks);
      ssize_t moved = write ? pwritev2(fd, &vector, 1, at, 0) : preadv2(fd, &vector, 1, at, 0);
      if (moved != BLOCK) fail("transfer");
    }
    end = now();
  }
  return (double)done / (end - start);
}

static int setup(struct io_uring_params *params) {
  params->flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  int fd = (int)syscall(SYS_io_uring_setup, MAX_DEPTH, params);
  if (fd >= 0) return fd;
  memset(params, 0, sizeof *params); /* before Linux 6.1 */
  fd = (int)syscall(SYS_io_uring_setup, MAX_DEPTH, params);
  if (fd < 0) fail("io_uring_setup");
  return fd;
}

static double by_uring(int fd, char *data, uint64_t blocks, int depth, double seconds, int write) {
  struct io_uring_params params = {0};
  int ring = setup(&params);
  size_t sq_bytes = params.sq_off.array + params.sq_entries * 4;
  size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
  size_t bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
  int access = PROT_READ | PROT_WRITE;
  char *rings = mmap(NULL, bytes, access, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
  struct io_uring_sqe *sqes = mmap(NULL, params.sq_entries * sizeof *sqes, access,
                                   MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
  if (rings == MAP_FAILED || (void *)sqes == MAP_FAILED) fail("mmap");
  uint32_t *sq_tail = (uint32_t *)(rings + params.sq_off.tail);
  uint32_t *array = (uint32_t *)(rings + params.sq_off.array);
  uint32_t *cq_head = (uint32_t *)(rings + params.cq_off.head);
  uint32_t *cq_tail = (uint32_t *)(rings + params.cq_off.tail);
  uint32_t mask = params.sq_entries - 1, cq_mask = params.cq_entries - 1;
  struct io_uring_cqe *cqes = (struct io_uring_cqe *)(rings + params.cq_off.cqes);
  uint32_t free_slots[MAX_DEPTH];
  uint32_t free_count = (uint32_t)depth, tail = 0, head = 0;
  for (int i = 0; i < depth; i++) free_slots[i] = (uint32_t)i;
  double start = now(), end = start;
  uint64_t done = 0;
  while (end - start < seconds) {
    uint32_t added = 0;
    while (free_count > 0) {
      uint32_t slot = free_slots[--free_count];
      struct io_uring_sqe *sqe = &sqes[tail & mask];
      memset(sqe, 0, sizeof *sqe);
      sqe->opcode = write ? IORING_OP_WRITE : IORING_OP_READ;
      sqe->fd = fd;
      sqe->off = place(blocks);
      sqe->addr = (uintptr_t)(data + slot * BLOCK);
      sqe->len = BLOCK;
      sqe->user_data = slot;
      array[tail & mask] = tail & mask;
      tail++, added++;
    }
    __atomic_store_n(sq_tail, tail, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, added, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0) {
      fail("io_uring_enter");
    }
    for (; head != __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE); head++, done++) {
      if (cqes[head & cq_mask].res != BLOCK) fail("a request");
      free_slots[free_count++] = (uint32_t)cqes[head & cq_mask].user_data;
    }
    __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
    end = now();
  }
  return (double)done / (end - start);
}

int main(int argc, char **argv) {
  if (argc != 7) return 2;
  int depth = atoi(argv[2]);
  int write = strcmp(argv[4], "write") == 0;
  int fd = open(argv[1], O_RDWR | (strcmp(argv[5], "direct") == 0 ? O_DIRECT : 0));
  struct stat stat;
  if (fd < 0 || fstat(fd, &stat) != 0) fail(argv[1]);
  if (depth < 1 || depth > MAX_DEPTH || stat.st_size < BLOCK) return 2;
  char *data = mmap(NULL, MAX_DEPTH * BLOCK, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (data == MAP_FAILED) fail("mmap");
  uint64_t blocks = (uint64_t)stat.st_size / BLOCK;
  double seconds = atof(argv[3]);
  int uring = strcmp(argv[6], "uring") == 0;
  printf("%.0f\n", (uring ? by_uring : by_calls)(fd, data, blocks, depth, seconds, write));
  return 0;
}
