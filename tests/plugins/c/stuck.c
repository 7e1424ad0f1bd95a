/* A pass that is well on its first matrix, and takes the pipe of its process away behind it: nobody reads what
 * the host asks next. HOW 1: for ever. HOW 2: before it has been read, something else answers, much. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frame.h"

static int kept;

/* The pipe that answers go through: the only one behind the standard descriptors that is written. */
static int answers(void) {
  struct stat about;
  for (int fd = 3; fd < 64; fd++)
    if (fstat(fd, &about) == 0 && S_ISFIFO(about.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY) return fd;
  return -1;
}

static void *chatter(void *unused) {
  static char words[4096];
  int waiting = 0, out = answers();
  memset(words, 'x', sizeof words);
  while (ioctl(kept, FIONREAD, &waiting) == 0 && waiting < 4096) usleep(1000);
  for (int i = 0; i < 256; i++)
    if (write(out, words, sizeof words) < 0) break;
  while (read(kept, words, sizeof words) > 0) continue;
  return unused;
}

static HlrcStatus peel(HlrcUser pass, HlrcContext context, HlrcPeel *peel) {
  (void)pass;
  uint64_t entries = peel->rows * peel->cols;
  HlrcStatus status = term_of(context, "dense", "weight", peel->rows, peel->cols, peel->residual, &peel->term);
  for (uint64_t i = 0; i < entries; i++) peel->residual[i] = 0;
  int silent[2];
  pthread_t thread;
  kept = dup(0);
  if (kept < 0 || pipe(silent) < 0 || dup2(silent[0], 0) < 0) return HLRC_ERROR;
  if (HOW == 2 && pthread_create(&thread, NULL, chatter, NULL) != 0) return HLRC_ERROR;
  return status;
}

static const HlrcPassDef pass_def = {
    PASS("stuck", "Stops listening."),
    .create = create,
    .traits = drops_whole,
    .peel = peel,
};
static const HlrcPassDef *const passes[] = {&pass_def};

PLUGIN("stuck", 0, NO_TERMS)
