/* eventfd, timerfd and epoll. */
#include "vring.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define MAX_EVENTS 256

static napi_value eventfd_create(napi_env env, napi_callback_info info) {
  (void)info;
  return vring_result(env, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

/*
 * eventfdSignal(fd): 0, or -EINTR when the call was held until the thread's watch ended it.
 *
 * A full counter means that the peer has its wake-up already, and it must not block us: peers hand
 * us eventfds whose O_NONBLOCK they can clear, so poll(2) is asked first. A peer that fills the
 * counter between the two calls all the same holds us for one tick of watchThread, and the caller
 * is told.
 */
static napi_value eventfd_signal(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t fd;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  struct pollfd room = {.fd = fd, .events = POLLOUT};
  if (poll(&room, 1, 0) != 1 || (room.revents & POLLOUT) == 0) return vring_number(env, 0);
  const uint64_t one = 1;
  if (write(fd, &one, sizeof one) < 0 && errno == EINTR) return vring_number(env, -EINTR);
  return vring_number(env, 0);
}

/* eventfdDrain(fd): the counter, or 0 */
static napi_value eventfd_drain(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  int32_t fd;
  if (!vring_int(env, argv[0], &fd)) return NULL;
  uint64_t value = 0;
  if (read(fd, &value, sizeof value) != (ssize_t)sizeof value) value = 0;
  return vring_double(env, (double)value);
}

static napi_value timerfd_create_(napi_env env, napi_callback_info info) {
  (void)info;
  return vring_result(env, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
}

/* timerfdSet(fd, nanoseconds): readable once, so long from now; 0: never. 0 or -errno */
static napi_value timerfd_set(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  uint64_t ns;
  if (!vring_int(env, argv[0], &fd) || !vring_offset(env, argv[1], &ns)) return NULL;
  const struct itimerspec when = {
      .it_value = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)}};
  return vring_result(env, timerfd_settime(fd, 0, &when, NULL));
}

static napi_value epoll_create_(napi_env env, napi_callback_info info) {
  (void)info;
  return vring_result(env, epoll_create1(EPOLL_CLOEXEC));
}

/* epollAdd(epoll, fd, token, events): 0 or -errno */
static napi_value epoll_add(napi_env env, napi_callback_info info) {
  VRING_ARGS(4);
  int32_t epoll, fd, token;
  uint32_t events;
  if (!vring_int(env, argv[0], &epoll) || !vring_int(env, argv[1], &fd)) return NULL;
  if (!vring_int(env, argv[2], &token) || !vring_u32(env, argv[3], &events)) return NULL;
  struct epoll_event event = {.events = events, .data.u64 = (uint32_t)token};
  return vring_result(env, epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

static napi_value epoll_remove(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t epoll, fd;
  if (!vring_int(env, argv[0], &epoll) || !vring_int(env, argv[1], &fd)) return NULL;
  struct epoll_event unused = {0};
  return vring_result(env, epoll_ctl(epoll, EPOLL_CTL_DEL, fd, &unused));
}

/* epollWait(epoll, tokens: Int32Array, timeoutMs): how many tokens, or -errno */
static napi_value epoll_wait_(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t epoll, timeout;
  void *data;
  size_t bytes;
  if (!vring_int(env, argv[0], &epoll) || !vring_bytes(env, argv[1], &data, &bytes)) return NULL;
  if (!vring_int(env, argv[2], &timeout)) return NULL;
  size_t room = bytes / sizeof(int32_t);
  struct epoll_event events[MAX_EVENTS];
  int count = epoll_wait(epoll, events, room < MAX_EVENTS ? (int)room : MAX_EVENTS, timeout);
  int32_t *tokens = data;
  for (int i = 0; i < count; i++) tokens[i] = (int32_t)events[i].data.u32;
  return vring_result(env, count);
}

void vring_register_event(napi_env env, napi_value exports) {
  vring_export(env, exports, "eventfdCreate", eventfd_create);
  vring_export(env, exports, "eventfdSignal", eventfd_signal);
  vring_export(env, exports, "eventfdDrain", eventfd_drain);
  vring_export(env, exports, "timerfdCreate", timerfd_create_);
  vring_export(env, exports, "timerfdSet", timerfd_set);
  vring_export(env, exports, "epollCreate", epoll_create_);
  vring_export(env, exports, "epollAdd", epoll_add);
  vring_export(env, exports, "epollRemove", epoll_remove);
  vring_export(env, exports, "epollWait", epoll_wait_);
}
