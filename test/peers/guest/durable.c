/*
 * Writes files and says of each step, once the kernel called it durable, that it is; afterwards,
 * when the power was cut in between, looks for everything that was said.
 *
 *   durable write FOLDER SEED FROM PORT     until it is killed; goes on after step FROM; the number
 *                                           of each step is a line out of the I/O port PORT
 *   durable check FOLDER SEED ACKED         ACKED: the last step that was said, 0 for none
 *
 * The port is QEMU's isa-debugcon: what was written there is out when the instruction ends, while
 * a terminal would still hold it when the power goes.
 *
 * Step n does one of three things by turns, chosen from (SEED, n) alone:
 *   replace  a new file beside it, fsync, rename over slot S, fsync of the folder
 *   append   one record of 64 bytes to `log`, fdatasync
 *   place    4 KiB of `pages` where they are, fdatasync
 * Contents follow from (SEED, n) too and name n, so `check` knows of each slot, record and page
 * the steps that it may hold: the last acknowledged one, or the one that was under way.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>
#include <unistd.h>

#include "random.h"

#define SLOTS 24
#define PAGES 64
#define PAGE 4096u
#define RECORD 64u
#define MAX_FILE (48u * 1024)

enum { REPLACE, APPEND, PLACE };

typedef struct {
  int kind;
  unsigned slot;
  size_t bytes;
  uint64_t content_seed;
} Step;

static const char *folder;
static uint64_t seed;
static uint8_t content[MAX_FILE], seen[MAX_FILE + 1];
static unsigned long wrong;

static void die(const char *what) {
  printf("durable: %s: %s: %s\n", folder, what, strerror(errno));
  exit(2);
}

static Step step_of(uint64_t n) {
  Random random = random_from(seed * 1000003 + n);
  Step step;
  uint64_t dice = random_below(&random, 10);
  step.kind = dice < 5 ? REPLACE : dice < 7 ? APPEND : PLACE;
  step.slot = (unsigned)random_below(&random, step.kind == PLACE ? PAGES : SLOTS);
  step.bytes = step.kind == REPLACE  ? 16 + random_below(&random, MAX_FILE - 16)
               : step.kind == APPEND ? RECORD
                                     : PAGE;
  step.content_seed = random_next(&random);
  return step;
}

/* The first eight bytes are n. */
static void fill(uint64_t n, const Step *step) {
  Random random = random_from(step->content_seed);
  random_fill(&random, content, step->bytes);
  memcpy(content, &n, sizeof n);
}

static int open_in(int directory, const char *name, int flags) {
  int file = openat(directory, name, flags, 0600);
  if (file < 0) die(name);
  return file;
}

static void write_all(int file, size_t bytes, off_t at) {
  for (size_t done = 0; done < bytes;) {
    ssize_t put = pwrite(file, content + done, bytes - done, at + (off_t)done);
    if (put < 0) die("write");
    done += (size_t)put;
  }
}

static void replace(int directory, const Step *step) {
  char name[32];
  int file = open_in(directory, "new", O_RDWR | O_CREAT | O_TRUNC);
  write_all(file, step->bytes, 0);
  if (fsync(file) < 0) die("fsync");
  close(file);
  snprintf(name, sizeof name, "slot-%02u", step->slot);
  if (renameat(directory, "new", directory, name) < 0) die("rename");
  if (fsync(directory) < 0) die("fsync of the folder");
}

static uint64_t appends_up_to(uint64_t n) {
  uint64_t count = 0;
  for (uint64_t i = 1; i <= n; i++) count += step_of(i).kind == APPEND;
  return count;
}

static void acknowledge(uint64_t n, unsigned short port) {
  char line[24];
  int length = snprintf(line, sizeof line, "%lu\n", (unsigned long)n);
  for (int i = 0; i < length; i++) outb((unsigned char)line[i], port);
}

static void write_steps(uint64_t from, unsigned short port) {
  if (ioperm(port, 1, 1) < 0) die("ioperm");
  int directory = open(folder, O_RDONLY | O_DIRECTORY);
  if (directory < 0) die("open");
  int log = open_in(directory, "log", O_RDWR | O_CREAT);
  int pages = open_in(directory, "pages", O_RDWR | O_CREAT);
  if (from == 0) {
    memset(content, 0, sizeof content);
    for (unsigned i = 0; i < PAGES; i++) write_all(pages, PAGE, (off_t)i * PAGE);
    if (fsync(pages) < 0 || fsync(log) < 0 || fsync(directory) < 0) die("fsync");
  }
  uint64_t records = appends_up_to(from);
  for (uint64_t n = from + 1;; n++) {
    Step step = step_of(n);
    fill(n, &step);
    if (step.kind == REPLACE) {
      replace(directory, &step);
    } else {
      int file = step.kind == APPEND ? log : pages;
      off_t at = step.kind == APPEND ? (off_t)(records++ * RECORD) : (off_t)step.slot * PAGE;
      write_all(file, step.bytes, at);
      if (fdatasync(file) < 0) die("fdatasync");
    }
    acknowledge(n, port);
    /* Else somebody flushes the disk at any time, and a power cut finds nothing to lose. */
    if (n % 8 == 0) usleep(200000);
  }
}

static void complain(const char *name, const char *what, uint64_t n) {
  printf("durable: %s/%s: %s (step %lu)\n", folder, name, what, (unsigned long)n);
  wrong++;
}

/* Bytes of the file in `seen`; 0 where there is none. */
static size_t read_file(int directory, const char *name, off_t at, size_t most) {
  int file = openat(directory, name, O_RDONLY);
  if (file < 0 && errno == ENOENT) return 0;
  if (file < 0) die(name);
  size_t done = 0;
  for (ssize_t got; done < most; done += (size_t)got) {
    got = pread(file, seen + done, most - done, at + (off_t)done);
    if (got < 0) die(name);
    if (got == 0) break;
  }
  close(file);
  return done;
}

/* Holds what step n wrote, the whole of it. */
static int holds(uint64_t n, size_t bytes) {
  Step step = step_of(n);
  fill(n, &step);
  return bytes == step.bytes && memcmp(seen, content, bytes) == 0;
}

/*
 * Slot or page `slot` must hold its last step up to `acked`, or the step after `acked`. The one
 * under way may be half there in a page, which nobody promises is written whole.
 */
static uint64_t check_slot(int directory, int kind, unsigned slot, uint64_t acked) {
  char name[32];
  uint64_t last = 0;
  for (uint64_t n = acked; n > 0 && last == 0; n--) {
    Step step = step_of(n);
    if (step.kind == kind && step.slot == slot) last = n;
  }
  Step next = step_of(acked + 1);
  int is_next = next.kind == kind && next.slot == slot;
  size_t bytes;
  if (kind == REPLACE) {
    snprintf(name, sizeof name, "slot-%02u", slot);
    bytes = read_file(directory, name, 0, sizeof seen);
  } else {
    snprintf(name, sizeof name, "pages");
    bytes = read_file(directory, name, (off_t)slot * PAGE, PAGE);
  }
  if (is_next && bytes == next.bytes && holds(acked + 1, bytes)) return acked + 1;
  if (is_next && kind == PLACE) return 0;
  if (last == 0) {
    size_t i = 0;
    while (i < bytes && seen[i] == 0) i++;
    if (i < bytes || (kind == REPLACE && bytes > 0)) complain(name, "holds what nobody wrote", 0);
  } else if (!holds(last, bytes)) {
    uint64_t names = 0;
    memcpy(&names, seen, bytes < sizeof names ? bytes : sizeof names);
    complain(name, bytes == 0 ? "is not there" : "does not hold what was acknowledged", last);
    printf("  %zu bytes; they name step %lu\n", bytes, (unsigned long)names);
  }
  return 0;
}

static void check_log(int directory, uint64_t acked) {
  uint64_t record = 0;
  for (uint64_t n = 1; n <= acked; n++) {
    if (step_of(n).kind != APPEND) continue;
    size_t bytes = read_file(directory, "log", (off_t)(record++ * RECORD), RECORD);
    if (!holds(n, bytes)) complain("log", "lacks a record", n);
  }
}

/* The step that was under way is carried out once more by the next run: acknowledged is enough. */
static int check(uint64_t acked) {
  int directory = open(folder, O_RDONLY | O_DIRECTORY);
  if (directory < 0) die("open");
  for (unsigned slot = 0; slot < SLOTS; slot++) check_slot(directory, REPLACE, slot, acked);
  for (unsigned slot = 0; slot < PAGES; slot++) check_slot(directory, PLACE, slot, acked);
  check_log(directory, acked);
  printf("durable: %s: %lu steps were acknowledged, %lu of them are wrong\n", folder,
         (unsigned long)acked, wrong);
  return wrong == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
  if (argc >= 5) {
    folder = argv[2];
    seed = strtoull(argv[3], NULL, 10);
    uint64_t n = strtoull(argv[4], NULL, 10);
    if (argc == 6 && strcmp(argv[1], "write") == 0) {
      write_steps(n, (unsigned short)strtoul(argv[5], NULL, 0));
    }
    if (argc == 5 && strcmp(argv[1], "check") == 0) return check(n);
  }
  fprintf(stderr, "usage: durable write FOLDER SEED FROM PORT | check FOLDER SEED ACKED\n");
  return 2;
}
