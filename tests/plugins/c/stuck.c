/* A pass that is well on its first matrix, and takes the pipe of its process away behind it: nobody reads what
 * the host asks next. HOW 1: for ever. HOW 2: before it has been read, something else answers, much. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hlrc_pass.h"

#define TEXT(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}
#ifndef HOW
#define HOW 1
#endif

static const HlrcHost *host;
static int kept;

static HlrcStatus create(const HlrcPassDef *def, HlrcContext context, HlrcStr options, HlrcUser *pass) {
  (void)def, (void)context, (void)options;
  *pass = NULL;
  return HLRC_OK;
}

static HlrcStatus traits(HlrcUser pass, HlrcContext context, HlrcMatrixTraits *traits) {
  (void)pass, (void)context;
  traits->access = HLRC_ACCESS_WHOLE;
  traits->residual = HLRC_RESIDUAL_DROP;
  return HLRC_OK;
}

/* The pipe that answers go through: the only one behind the standard descriptors that is written. */
static int answers(void) {
  struct stat about;
  for (int fd = 3; fd < 64; fd++)
    if (fstat(fd, &about) == 0 && S_ISFIFO(about.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY) return fd;
  return -1;
}

static void *chatter(void *unused) {
  static char text[4096];
  int waiting = 0, out = answers();
  memset(text, 'x', sizeof text);
  while (ioctl(kept, FIONREAD, &waiting) == 0 && waiting < 4096) usleep(1000);
  for (int i = 0; i < 256; i++)
    if (write(out, text, sizeof text) < 0) break;
  while (read(kept, text, sizeof text) > 0) continue;
  return unused;
}

static HlrcStatus peel(HlrcUser pass, HlrcContext context, HlrcPeel *peel) {
  (void)pass;
  uint64_t dims[2] = {peel->rows, peel->cols}, entries = peel->rows * peel->cols;
  HlrcStr kind = TEXT("dense"), none = TEXT("{}");
  HlrcTensor tensor = {TEXT("weight"), 1, 2, dims, (const uint8_t *)peel->residual, entries * 4};
  HlrcStatus status = host->term_new(context, kind, none, peel->rows, peel->cols, &tensor, 1, &peel->term);
  for (uint64_t i = 0; i < entries; i++) peel->residual[i] = 0;
  int silent[2];
  pthread_t thread;
  kept = dup(0);
  if (kept < 0 || pipe(silent) < 0 || dup2(silent[0], 0) < 0) return HLRC_ERROR;
  if (HOW == 2 && pthread_create(&thread, NULL, chatter, NULL) != 0) return HLRC_ERROR;
  return status;
}

static const HlrcPassDef pass_def = {
    .size = sizeof(HlrcPassDef),
    .name = TEXT("stuck"),
    .summary = TEXT("Stops listening."),
    .schema = TEXT(""),
    .create = create,
    .traits = traits,
    .peel = peel,
};
static const HlrcPassDef *const passes[] = {&pass_def};
static const HlrcPlugin plugin = {
    .size = sizeof(HlrcPlugin),
    .abi_major = HLRC_ABI_MAJOR,
    .abi_minor = 0,
    .name = TEXT("stuck"),
    .version = TEXT("1"),
    .passes = passes,
    .pass_count = 1,
};

const HlrcPlugin *hlrc_plugin(const HlrcHost *given) {
  host = given;
  return &plugin;
}
