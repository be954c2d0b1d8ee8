/*
 * Readiness of one fd in this thread's event loop, by libuv's uv_poll. Its prototypes are
 * declared here: uv.h is no part of node-api-headers, while these eight are stable since 1.0.
 *
 * A poll lives from pollStart to pollStop; libuv closes it a turn later and its memory is freed
 * then. When the thread ends first, the asynchronous clean-up hook closes it.
 */
#include "vring.h"

#include <stdlib.h>

typedef struct uv_loop_s uv_loop_t;
typedef struct uv_poll_s uv_poll_t;
extern size_t uv_handle_size(int type);
extern int uv_poll_init(uv_loop_t *loop, uv_poll_t *poll, int fd);
extern int uv_poll_start(uv_poll_t *poll, int events,
                         void (*callback)(uv_poll_t *poll, int status, int events));
extern int uv_poll_stop(uv_poll_t *poll);
extern void uv_close(uv_poll_t *poll, void (*callback)(uv_poll_t *poll));
extern void uv_handle_set_data(uv_poll_t *poll, void *data);
extern void *uv_handle_get_data(const uv_poll_t *poll);

#define UV_POLL 8 /* uv_handle_type; the order is part of libuv's ABI */
#define READABLE 1
#define WRITABLE 2

struct poll {
  napi_env env;
  napi_ref callback;
  napi_async_cleanup_hook_handle hook;
  uv_poll_t *handle;
  bool closing;
};

static void on_closed(uv_poll_t *handle) {
  struct poll *poll = uv_handle_get_data(handle);
  napi_remove_async_cleanup_hook(poll->hook);
  free(poll->handle);
  free(poll);
}

static void close_poll(struct poll *poll) {
  if (poll->closing) return;
  poll->closing = true;
  uv_poll_stop(poll->handle);
  uv_close(poll->handle, on_closed);
}

static void on_exit_thread(napi_async_cleanup_hook_handle hook, void *data) {
  (void)hook;
  close_poll(data);
}

/* An error of the fd counts as ready for everything: the next read or write tells which. */
static void on_ready(uv_poll_t *handle, int status, int events) {
  struct poll *poll = uv_handle_get_data(handle);
  napi_env env = poll->env;
  napi_handle_scope scope;
  if (poll->closing || napi_open_handle_scope(env, &scope) != napi_ok) return;
  napi_value global, callback, argument, result;
  napi_get_global(env, &global);
  napi_get_reference_value(env, poll->callback, &callback);
  napi_create_int32(env, status < 0 ? READABLE | WRITABLE : events, &argument);
  napi_status called = napi_make_callback(env, NULL, global, callback, 1, &argument, &result);
  if (called == napi_pending_exception) {
    napi_value error;
    napi_get_and_clear_last_exception(env, &error);
    napi_fatal_exception(env, error);
  }
  napi_close_handle_scope(env, scope);
}

/* pollStart(fd, events, callback(events)): an external, or -errno */
static napi_value poll_start(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  int32_t fd, events;
  if (!vring_int(env, argv[0], &fd) || !vring_int(env, argv[1], &events)) return NULL;
  uv_loop_t *loop;
  if (napi_get_uv_event_loop(env, (struct uv_loop_s **)&loop) != napi_ok) {
    return vring_number(env, -EINVAL);
  }
  struct poll *poll = calloc(1, sizeof *poll);
  uv_poll_t *handle = poll == NULL ? NULL : calloc(1, uv_handle_size(UV_POLL));
  if (handle == NULL) {
    free(poll);
    return vring_number(env, -ENOMEM);
  }
  poll->env = env;
  poll->handle = handle;
  int error = uv_poll_init(loop, handle, fd);
  if (error != 0) {
    free(handle);
    free(poll);
    return vring_number(env, error);
  }
  uv_handle_set_data(handle, poll);
  napi_value external = NULL;
  napi_add_async_cleanup_hook(env, on_exit_thread, poll, &poll->hook);
  napi_create_reference(env, argv[2], 1, &poll->callback);
  napi_create_external(env, poll, NULL, NULL, &external);
  error = uv_poll_start(handle, events, on_ready);
  if (error == 0) return external;
  napi_delete_reference(env, poll->callback);
  close_poll(poll);
  return vring_number(env, error);
}

/* pollUpdate(external, events): 0 or -errno; no events at all pauses it */
static napi_value poll_update(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  void *data;
  int32_t events;
  if (napi_get_value_external(env, argv[0], &data) != napi_ok) return NULL;
  if (!vring_int(env, argv[1], &events)) return NULL;
  struct poll *poll = data;
  if (events == 0) return vring_number(env, uv_poll_stop(poll->handle));
  return vring_number(env, uv_poll_start(poll->handle, events, on_ready));
}

/* pollStop(external): nothing. The caller never uses the external again. */
static napi_value poll_stop(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  void *data;
  if (napi_get_value_external(env, argv[0], &data) != napi_ok) return NULL;
  struct poll *poll = data;
  napi_delete_reference(env, poll->callback);
  poll->callback = NULL;
  close_poll(poll);
  return NULL;
}

void vring_register_poll(napi_env env, napi_value exports) {
  vring_export(env, exports, "pollStart", poll_start);
  vring_export(env, exports, "pollUpdate", poll_update);
  vring_export(env, exports, "pollStop", poll_stop);
}
