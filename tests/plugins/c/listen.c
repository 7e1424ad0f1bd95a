/* A module pass that remarks what it is told: the seed, and the statistics of each matrix. NEEDS says whether
 * it does without. */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hlrc_pass.h"

#define TEXT(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}
#ifndef NEEDS
#define NEEDS HLRC_CALIBRATION_USED
#endif

static const HlrcHost *host;

/* What it was told when it was made. */
typedef struct {
  uint64_t seed, first;
} Made;

static HlrcStatus create(const HlrcPassDef *def, HlrcContext context, HlrcStr options, HlrcUser *pass) {
  (void)def, (void)options;
  Made *made = calloc(1, sizeof *made);
  *pass = made;
  if (made == NULL || host->seed(context, &made->seed) != HLRC_OK) return HLRC_ERROR;
  return host->random(context, &made->first, 1);
}

static void destroy(HlrcUser pass) { free(pass); }

static HlrcStatus traits(HlrcUser pass, HlrcContext context, HlrcMatrixTraits *traits) {
  (void)pass, (void)context;
  traits->calibration = NEEDS;
  return HLRC_OK;
}

static HlrcStatus say(HlrcContext context, HlrcStr site, const char *text, size_t len) {
  HlrcStr message = {(const uint8_t *)text, len};
  return host->remark(context, HLRC_REMARK_ANALYSIS, site, message);
}

static HlrcStatus about(HlrcContext context, HlrcOpRef at) {
  HlrcStr site, unknown = TEXT("nowhere");
  HlrcMoments moments = {.size = sizeof moments};
  HlrcStatus status = host->op_site(context, at, &site);
  if (status == HLRC_NONE) return HLRC_OK;
  if (status != HLRC_OK) return status;
  if (host->moments(context, unknown, &moments) != HLRC_INVALID) return HLRC_ERROR;
  status = host->moments(context, site, &moments);
  if (status == HLRC_NONE) return say(context, site, "no statistics", 13);
  if (status != HLRC_OK) return status;
  double diagonal = 0, trace = 0;
  for (uint64_t i = 0; i < moments.width; i++) {
    diagonal += moments.diagonal[i];
    if (moments.hessian) trace += moments.hessian[i * moments.width + i];
  }
  char text[128];
  int len = snprintf(text, sizeof text, "tokens=%" PRIu64 " width=%" PRIu64 " diagonal=%.6g trace=%.6g",
                     moments.tokens, moments.width, diagonal, trace);
  return say(context, site, text, (size_t)len);
}

static HlrcStatus run(HlrcUser pass, HlrcContext context) {
  const Made *made = pass;
  if (host->size < offsetof(HlrcHost, moments) + sizeof host->moments) return HLRC_ERROR;
  uint64_t seed = 0, first = 0;
  if (host->seed(context, &seed) != HLRC_OK || host->random(context, &first, 1) != HLRC_OK) return HLRC_ERROR;
  char text[160];
  int len = snprintf(text, sizeof text, "seed=%" PRIu64 " random=%016" PRIx64 " made=%" PRIu64 " by=%016" PRIx64,
                     seed, first, made->seed, made->first);
  HlrcStr module = TEXT("module");
  if (say(context, module, text, (size_t)len) != HLRC_OK) return HLRC_ERROR;
  uint32_t graphs = 0;
  if (host->graph_count(context, &graphs) != HLRC_OK) return HLRC_ERROR;
  for (uint32_t graph = 0; graph < graphs; graph++) {
    HlrcGraphInfo info = {.size = sizeof info};
    if (host->graph_info(context, graph, &info) != HLRC_OK) return HLRC_ERROR;
    for (size_t i = 0; i < info.op_count; i++) {
      HlrcOpRef at = {graph, info.ops[i]};
      HlrcStatus status = about(context, at);
      if (status != HLRC_OK) return status;
    }
  }
  return HLRC_OK;
}

static const HlrcPassDef pass_def = {
    .size = sizeof(HlrcPassDef),
    .name = TEXT("listen"),
    .summary = TEXT("Remarks what it is told."),
    .schema = TEXT(""),
    .create = create,
    .destroy = destroy,
    .traits = traits,
    .run = run,
};
static const HlrcPassDef *const passes[] = {&pass_def};

static const HlrcPlugin plugin = {
    .size = sizeof(HlrcPlugin),
    .abi_major = HLRC_ABI_MAJOR,
    .abi_minor = 2, /* the statistics */
    .name = TEXT("listen"),
    .version = TEXT("1"),
    .passes = passes,
    .pass_count = 1,
};

const HlrcPlugin *hlrc_plugin(const HlrcHost *given) {
  host = given;
  return &plugin;
}
