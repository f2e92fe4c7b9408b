// What the three programs that measure the machine's limits share: time, memory, block order, content, places.
//
// Memory is mapped shared, as a memfd is: that is what an engine's cache is to a daemon. Each process maps its own after
// the fork, so that nothing is copied on write. Every 64-bit word of a source is different, so a block in a wrong place
// is seen.
#ifndef MEASURE_H
#define MEASURE_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// The same constant as in ends/blocks.py: the content of word i is (i + 1) times it.
#define CONTENT 0x9E3779B97F4A7C15UL

static inline void die(const char *what) {
  perror(what);
  exit(1);
}

static inline double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static inline char *map_bytes(size_t bytes) {
  char *memory = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap");
  return memory;
}

static inline void fill(char *memory, size_t bytes) {
  uint64_t *word = (uint64_t *)memory;
  for (size_t i = 0; i < bytes / 8; i++) word[i] = (i + 1) * CONTENT;
}

// Does the block at `landed` hold what the source has from byte `offset` on?
static inline int holds(const char *landed, size_t offset, size_t bytes) {
  const uint64_t *word = (const uint64_t *)landed;
  for (size_t i = 0; i < bytes / 8; i++)
    if (word[i] != (offset / 8 + i + 1) * CONTENT) return 0;
  return 1;
}

static inline uint64_t next_random(uint64_t *state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15UL);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9UL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBUL;
  return z ^ (z >> 31);
}

// The offsets of all blocks of a region, in random order.
static inline size_t *shuffled(size_t region, size_t block, uint64_t seed) {
  size_t count = region / block;
  size_t *order = malloc(count * sizeof *order);
  if (!order) die("malloc");
  for (size_t i = 0; i < count; i++) order[i] = i * block;
  for (size_t i = count - 1; i > 0; i--) {
    size_t j = next_random(&seed) % (i + 1), kept = order[i];
    order[i] = order[j];
    order[j] = kept;
  }
  return order;
}

// Moves the calling thread into a named network namespace; "" stays where it is.
static inline void enter(const char *name) {
  char path[256];
  if (!*name) return;
  snprintf(path, sizeof path, "/run/netns/%s", name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) die(path);
  if (setns(fd, CLONE_NEWNET)) die("setns");
  close(fd);
}

// A child that ends with its parent, whatever ends that.
static inline pid_t fork_bound(void) {
  pid_t parent = getpid(), child = fork();
  if (child < 0) die("fork");
  if (!child) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
  }
  return child;
}

// The value behind `--name`, or the default.
static inline const char *option(int argc, char **argv, const char *name, const char *otherwise) {
  for (int i = 1; i + 1 < argc; i += 2)
    if (!strcmp(argv[i] + 2, name)) return argv[i + 1];
  return otherwise;
}

static inline int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

#endif
