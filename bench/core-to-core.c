/*
 * How long a cache line takes from one core to the other and back: prints nanoseconds.
 *
 *   core-to-core CORE CORE
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define TURNS 20000u

static _Alignas(64) atomic_uint line;
static int cores[2];

static void run_on(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) perror("core-to-core"), exit(1);
}

static void *answer(void *unused) {
  run_on(cores[1]);
  for (uint32_t turn = 0; turn < TURNS; turn++) {
    while (atomic_load_explicit(&line, memory_order_acquire) != 2 * turn + 1) continue;
    atomic_store_explicit(&line, 2 * turn + 2, memory_order_release);
  }
  return unused;
}

static double now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

int main(int argc, char **argv) {
  pthread_t thread;
  double start = 0;
  if (argc != 3) return 2;
  for (int i = 0; i < 2; i++) cores[i] = atoi(argv[i + 1]);
  run_on(cores[0]);
  if (pthread_create(&thread, NULL, answer, NULL) != 0) return 1;
  for (uint32_t turn = 0; turn < TURNS; turn++) {
    if (turn == TURNS / 10) start = now_ns(); /* the other one has its core by then */
    atomic_store_explicit(&line, 2 * turn + 1, memory_order_release);
    while (atomic_load_explicit(&line, memory_order_acquire) != 2 * turn + 2) continue;
  }
  printf("%.1f\n", (now_ns() - start) / (TURNS - TURNS / 10));
  pthread_join(thread, NULL);
  return 0;
}
