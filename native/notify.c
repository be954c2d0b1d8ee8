/*
 * Doorbells: pages of a device's own memory that a driver writes to instead of signalling an
 * eventfd. linux/vhost.h, "mmap"; drivers/vhost/vdpa.c, vhost_vdpa_mmap().
 *
 * A doorbell is an external that holds the page's address. Its owner in src/sys unmaps it; one that
 * its thread leaves behind stays mapped until the process ends.
 */
#include "vring.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct doorbell {
  volatile void *page; /* NULL: unmapped */
  size_t bytes;
};

static void free_doorbell(napi_env env, void *data, void *hint) {
  (void)env;
  (void)hint;
  free(data);
}

/* notifyMap(fd, page): an external, or -errno. `page` is the number of the page in the fd. */
static napi_value notify_map(napi_env env, napi_callback_info info) {
  VRING_ARGS(2);
  int32_t fd;
  uint32_t page;
  if (!vring_int(env, argv[0], &fd) || !vring_u32(env, argv[1], &page)) return NULL;
  struct doorbell *bell = calloc(1, sizeof *bell);
  if (bell == NULL) return vring_number(env, -ENOMEM);
  bell->bytes = (size_t)sysconf(_SC_PAGESIZE);
  void *at = mmap(NULL, bell->bytes, PROT_WRITE, MAP_SHARED, fd, (off_t)page * (off_t)bell->bytes);
  if (at == MAP_FAILED) {
    int error = errno;
    free(bell);
    return vring_number(env, -error);
  }
  bell->page = at;
  napi_value external = NULL;
  if (napi_create_external(env, bell, free_doorbell, NULL, &external) == napi_ok) return external;
  munmap(at, bell->bytes);
  free(bell);
  return vring_number(env, -ENOMEM);
}

/* notifyRing(external, value, bytes): writes 2 or 4 bytes at the start of the page; 0 or -errno */
static napi_value notify_ring(napi_env env, napi_callback_info info) {
  VRING_ARGS(3);
  void *data;
  uint32_t value, bytes;
  if (napi_get_value_external(env, argv[0], &data) != napi_ok) return NULL;
  if (!vring_u32(env, argv[1], &value) || !vring_u32(env, argv[2], &bytes)) return NULL;
  struct doorbell *bell = data;
  if (bell->page == NULL) return vring_number(env, -EBADF);
  /* What the driver wrote into its ring is visible before the doorbell is: release. */
  if (bytes == 2) {
    __atomic_store_n((volatile uint16_t *)bell->page, (uint16_t)value, __ATOMIC_RELEASE);
  } else if (bytes == 4) {
    __atomic_store_n((volatile uint32_t *)bell->page, value, __ATOMIC_RELEASE);
  } else {
    return vring_number(env, -EINVAL);
  }
  return vring_number(env, 0);
}

/* notifyUnmap(external): 0 or -errno; once more is 0. */
static napi_value notify_unmap(napi_env env, napi_callback_info info) {
  VRING_ARGS(1);
  void *data;
  if (napi_get_value_external(env, argv[0], &data) != napi_ok) return NULL;
  struct doorbell *bell = data;
  void *page = (void *)bell->page;
  bell->page = NULL;
  return vring_result(env, page == NULL ? 0 : munmap(page, bell->bytes));
}

void vring_register_notify(napi_env env, napi_value exports) {
  vring_export(env, exports, "notifyMap", notify_map);
  vring_export(env, exports, "notifyRing", notify_ring);
  vring_export(env, exports, "notifyUnmap", notify_unmap);
}
