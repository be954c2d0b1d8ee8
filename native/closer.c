/*
 * closeAside(fd): closes a descriptor in a thread that nobody waits for. close(2) of a file on a
 * network or FUSE file system waits for whoever serves it, without an end if it does not answer.
 *
 * A few threads, started by the first call, read descriptors from a pipe. One that is held for ever
 * is lost to us; when all are, what follows waits in the pipe, and when that is full stays open.
 * libuv's threads, because pthread_create moved between libraries.
 */
#include "vring.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <unistd.h>

typedef unsigned long uv_thread_t; /* pthread_t */
extern int uv_thread_create(uv_thread_t *thread, void (*entry)(void *argument), void *argument);

#define CLOSERS 4

static int queue[2] = {-1, -1};
static atomic_int state; /* 0 not started, 1 starting, 2 ready */

static void run(void *argument) {
  (void)argument;
  int fd;
  for (;;) {
    ssize_t got = read(queue[0], &fd, sizeof fd);
    if (got == sizeof fd) close(fd);
    else if (got == 0 || errno != EINTR) return;
  }
}

/* 0 or -errno. Another thread may be starting: then it is soon ready. */
static int start(void) {
  int expected = 0;
  if (!atomic_compare_exchange_strong(&state, &expected, 1)) return expected == 2 ? 0 : -EAGAIN;
  if (pipe2(queue, O_CLOEXEC) != 0) {
    int error = -errno;
    atomic_store(&state, 0);
    return error;
  }
  fcntl(queue[1], F_SETFL, O_NONBLOCK);
  int threads = 0;
  for (int i = 0; i < CLOSERS; i++) {
    uv_thread_t thread;
    if (uv_thread_create(&thread, run, NULL) == 0) threads++;
  }
  atomic_store(&state, 2);
  return threads > 0 ? 0 : -EAGAIN;
}

/* 0, or -EAGAIN: all threads are held and their queue is full, the descriptor stays open. */
static napi_value close_aside(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t fd;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  int started = start();
  if (started < 0) return vring_number(env, started);
  ssize_t written = write(queue[1], &fd, sizeof fd);
  return vring_number(env, written == sizeof fd ? 0 : -EAGAIN);
}

void vring_register_closer(napi_env env, napi_value exports) {
  vring_export(env, exports, "closeAside", close_aside);
}
