/* A module pass that remarks what it is told: the seed, and the statistics of each matrix. NEEDS says whether
 * it does without. */
#include "frame.h"

#ifndef NEEDS
#define NEEDS HLRC_CALIBRATION_USED
#endif

/* What it was told when it was made. */
typedef struct {
  uint64_t seed, first;
} Made;

static HlrcStatus make(const HlrcPassDef *def, HlrcContext context, HlrcStr options, HlrcUser *pass) {
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

static HlrcStatus say(HlrcContext context, HlrcStr site, const char *what) {
  return host->remark(context, HLRC_REMARK_ANALYSIS, site, text(what));
}

static HlrcStatus about(HlrcContext context, HlrcOpRef at) {
  HlrcStr site, unknown = TEXT("nowhere");
  HlrcMoments moments = {.size = sizeof moments};
  HlrcStatus status = host->op_site(context, at, &site);
  if (status == HLRC_NONE) return HLRC_OK;
  if (status != HLRC_OK) return status;
  if (host->moments(context, unknown, &moments) != HLRC_INVALID) return HLRC_ERROR;
  status = host->moments(context, site, &moments);
  if (status == HLRC_NONE) return say(context, site, "no statistics");
  if (status != HLRC_OK) return status;
  double diagonal = 0, trace = 0;
  for (uint64_t i = 0; i < moments.width; i++) {
    diagonal += moments.diagonal[i];
    if (moments.hessian) trace += moments.hessian[i * moments.width + i];
  }
  char made[128];
  snprintf(made, sizeof made, "tokens=%" PRIu64 " width=%" PRIu64 " diagonal=%.6g trace=%.6g",
           moments.tokens, moments.width, diagonal, trace);
  return say(context, site, made);
}

static HlrcStatus run(HlrcUser pass, HlrcContext context) {
  const Made *made = pass;
  if (host->size < offsetof(HlrcHost, moments) + sizeof host->moments) return HLRC_ERROR;
  uint64_t seed = 0, first = 0;
  if (host->seed(context, &seed) != HLRC_OK || host->random(context, &first, 1) != HLRC_OK) return HLRC_ERROR;
  char told[160];
  snprintf(told, sizeof told, "seed=%" PRIu64 " random=%016" PRIx64 " made=%" PRIu64 " by=%016" PRIx64,
           seed, first, made->seed, made->first);
  if (say(context, text("module"), told) != HLRC_OK) return HLRC_ERROR;
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
    PASS("listen", "Remarks what it is told."),
    .create = make,
    .destroy = destroy,
    .traits = traits,
    .run = run,
};
static const HlrcPassDef *const passes[] = {&pass_def};

PLUGIN("listen", 2, /* the statistics */ NO_TERMS)
