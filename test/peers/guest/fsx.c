/*
 * Random operations on one file, each result held against a model in memory: read, write, mapped
 * read and write, O_DIRECT read and write, truncate, punched holes, zeroed ranges, fsync, and
 * reading again what the page cache has dropped. For file systems on our disks.
 *
 *   fsx FILE SEED OPERATIONS|0 MAX_BYTES [STOP_FILE]
 *
 * 0 operations: until STOP_FILE is there. The last line says what was done; status 1 is a
 * difference, 2 an operation that failed, with the operations before it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "random.h"

#define PAGE 4096u
#define MAX_OPERATION (256u * 1024)
#define HISTORY 24

static const char *path;
static int fd = -1, direct_fd = -1;
static uint8_t *model, *buffer;
static size_t size_bytes, max_bytes;
static Random rng;
static unsigned long number;

static char history[HISTORY][80];

static void fail(int status, const char *what) {
  int error = errno;
  for (unsigned long i = number > HISTORY ? number - HISTORY : 0; i < number; i++)
    printf("  %s\n", history[i % HISTORY]);
  printf("fsx: %s: operation %lu: %s", path, number, what);
  if (status == 2) printf(": %s", strerror(error));
  printf("\n");
  exit(status);
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(history[number % HISTORY], sizeof history[0], format, arguments);
  va_end(arguments);
}

static void open_file(int flags) {
  fd = open(path, O_RDWR | flags, 0600);
  if (fd < 0) fail(2, "open");
  direct_fd = open(path, O_RDWR | O_DIRECT);
  if (direct_fd < 0) fail(2, "open with O_DIRECT");
}

/* A range inside `limit`; whole pages with `aligned`. False: there is none. */
static int choose(size_t limit, int aligned, size_t *at, size_t *bytes) {
  if (limit < (aligned ? PAGE : 1)) return 0;
  *at = random_below(&rng, limit);
  *bytes = 1 + random_below(&rng, MAX_OPERATION);
  if (aligned) {
    *at &= ~(size_t)(PAGE - 1);
    *bytes = (*bytes + PAGE - 1) & ~(size_t)(PAGE - 1);
    limit &= ~(size_t)(PAGE - 1);
  }
  if (*at >= limit) return 0;
  if (*bytes > limit - *at) *bytes = limit - *at;
  return *bytes > 0;
}

static void compare(size_t at, size_t bytes, const uint8_t *seen) {
  for (size_t i = 0; i < bytes; i++) {
    if (seen[i] == model[at + i]) continue;
    char text[120];
    snprintf(text, sizeof text, "byte %zu is 0x%02x, expected 0x%02x; %zu bytes from %zu were read",
             at + i, seen[i], model[at + i], bytes, at);
    fail(1, text);
  }
}

static void grow_to(size_t end) {
  if (end > size_bytes) size_bytes = end;
}

static void check_size(void) {
  struct stat now;
  if (fstat(fd, &now) < 0) fail(2, "fstat");
  if ((size_t)now.st_size != size_bytes) {
    char text[96];
    snprintf(text, sizeof text, "size is %zu, expected %zu", (size_t)now.st_size, size_bytes);
    fail(1, text);
  }
}

static void do_read(int direct) {
  size_t at, bytes;
  if (!choose(size_bytes, direct, &at, &bytes)) return;
  note("%s %zu + %zu", direct ? "direct read" : "read", at, bytes);
  ssize_t got = pread(direct ? direct_fd : fd, buffer, bytes, at);
  if (got < 0) fail(2, direct ? "direct read" : "read");
  if ((size_t)got != bytes) fail(1, "a read came back short");
  compare(at, bytes, buffer);
}

static void do_write(int direct) {
  size_t at, bytes;
  if (!choose(max_bytes, direct, &at, &bytes)) return;
  note("%s %zu + %zu", direct ? "direct write" : "write", at, bytes);
  random_fill(&rng, buffer, bytes);
  ssize_t put = pwrite(direct ? direct_fd : fd, buffer, bytes, at);
  if (put < 0) fail(2, direct ? "direct write" : "write");
  if ((size_t)put != bytes) fail(1, "a write came back short");
  memcpy(model + at, buffer, bytes);
  grow_to(at + bytes);
}

static void do_mapped(int writing) {
  size_t at, bytes;
  if (!choose(size_bytes, 0, &at, &bytes)) return;
  note("mapped %s %zu + %zu", writing ? "write" : "read", at, bytes);
  size_t start = at & ~(size_t)(PAGE - 1), skip = at - start;
  uint8_t *map = mmap(NULL, skip + bytes, PROT_READ | (writing ? PROT_WRITE : 0), MAP_SHARED, fd,
                      (off_t)start);
  if (map == MAP_FAILED) fail(2, "mmap");
  if (writing) {
    random_fill(&rng, model + at, bytes);
    memcpy(map + skip, model + at, bytes);
    if (random_below(&rng, 2) == 0 && msync(map, skip + bytes, MS_SYNC) < 0) fail(2, "msync");
  } else {
    compare(at, bytes, map + skip);
  }
  munmap(map, skip + bytes);
}

static void do_truncate(void) {
  size_t to = random_below(&rng, max_bytes);
  note("truncate %zu -> %zu", size_bytes, to);
  if (ftruncate(fd, (off_t)to) < 0) fail(2, "truncate");
  if (to < size_bytes) memset(model + to, 0, size_bytes - to); /* zeros when it grows again */
  size_bytes = to;
}

static void do_clear(int mode, const char *what) {
  size_t at, bytes;
  if (!choose(size_bytes, 0, &at, &bytes)) return;
  note("%s %zu + %zu", what, at, bytes);
  if (fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)bytes) < 0) {
    if (errno == EOPNOTSUPP) return;
    fail(2, what);
  }
  memset(model + at, 0, bytes);
}

static void do_sync(int data_only) {
  note(data_only ? "fdatasync" : "fsync");
  if ((data_only ? fdatasync(fd) : fsync(fd)) < 0) fail(2, "fsync");
}

/* What is read afterwards comes from the disk. */
static void do_drop(void) {
  note("drop the cache");
  if (fsync(fd) < 0) fail(2, "fsync");
  if (posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) fail(2, "fadvise");
}

static void do_reopen(void) {
  note("close and open");
  if (close(fd) < 0 || close(direct_fd) < 0) fail(2, "close");
  open_file(0);
}

static void operate(void) {
  uint64_t dice = random_below(&rng, 100);
  if (dice < 22) do_read(0);
  else if (dice < 46) do_write(0);
  else if (dice < 56) do_mapped(0);
  else if (dice < 66) do_mapped(1);
  else if (dice < 72) do_read(1);
  else if (dice < 78) do_write(1);
  else if (dice < 82) do_truncate();
  else if (dice < 87) do_clear(FALLOC_FL_PUNCH_HOLE, "punch");
  else if (dice < 90) do_clear(FALLOC_FL_ZERO_RANGE, "zero");
  else if (dice < 94) do_sync((int)(dice & 1));
  else if (dice < 98) do_drop();
  else do_reopen();
  number++;
}

int main(int argc, char **argv) {
  if (argc < 5) {
    fprintf(stderr, "usage: fsx FILE SEED OPERATIONS|0 MAX_BYTES [STOP_FILE]\n");
    return 2;
  }
  path = argv[1];
  rng = random_from(strtoull(argv[2], NULL, 10));
  unsigned long operations = strtoul(argv[3], NULL, 10);
  max_bytes = strtoul(argv[4], NULL, 10);
  const char *stop = argc > 5 ? argv[5] : NULL;
  model = calloc(1, max_bytes);
  if (model == NULL || posix_memalign((void **)&buffer, PAGE, MAX_OPERATION + PAGE) != 0) {
    fail(2, "memory");
  }
  open_file(O_CREAT | O_TRUNC);
  while (operations == 0 ? access(stop, F_OK) != 0 : number < operations) {
    operate();
    if (number % 16 == 0) check_size();
  }
  do_drop();
  check_size();
  for (size_t at = 0; at < size_bytes; at += MAX_OPERATION) {
    size_t bytes = size_bytes - at < MAX_OPERATION ? size_bytes - at : MAX_OPERATION;
    if (pread(fd, buffer, bytes, (off_t)at) != (ssize_t)bytes) fail(2, "read");
    compare(at, bytes, buffer);
  }
  printf("fsx: %lu operations, %zu bytes, seed %s: nothing differs\n", number, size_bytes, argv[2]);
  return 0;
}
