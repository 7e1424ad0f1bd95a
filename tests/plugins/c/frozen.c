/* A plugin of the first version of the interface: a pass, and a kind of term. It must load as it is for as
 * long as the major version is 1. */
#include <stdlib.h>
#include <string.h>

#include "hlrc_pass.h"

#define TEXT(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}

static const HlrcHost *host;

static HlrcStatus create(const HlrcPassDef *def, HlrcContext context, HlrcStr options, HlrcUser *pass) {
  (void)def, (void)context, (void)options;
  *pass = malloc(1);
  return HLRC_OK;
}

static void destroy(HlrcUser pass) { free(pass); }

static HlrcStatus traits(HlrcUser pass, HlrcContext context, HlrcMatrixTraits *traits) {
  (void)pass, (void)context;
  traits->access = HLRC_ACCESS_ROWS;
  traits->residual = HLRC_RESIDUAL_DROP;
  return HLRC_OK;
}

static HlrcStatus peel(HlrcUser pass, HlrcContext context, HlrcPeel *peel) {
  (void)pass;
  uint64_t dims[2] = {peel->rows, peel->cols}, random = 0, entries = peel->rows * peel->cols;
  HlrcStr kind = TEXT("frozen.half"), attributes = TEXT("{\"factor\":2}"), note = TEXT("halves"), site = TEXT("");
  float *half = malloc(entries * sizeof *half);
  for (uint64_t i = 0; i < entries; i++) half[i] = peel->residual[i] / 2, peel->residual[i] = 0;
  HlrcTensor values = {TEXT("values"), 1, 2, dims, (const uint8_t *)half, entries * sizeof *half};
  HlrcStatus status = host->term_new(context, kind, attributes, peel->rows, peel->cols, &values, 1, &peel->term);
  free(half);
  if (status != HLRC_OK) return status;
  host->note(context, note);
  host->progress(context, 1, 1);
  host->remark(context, HLRC_REMARK_PASSED, site, note);
  if (host->random(context, &random, 1) != HLRC_OK || random == 0) return HLRC_ERROR;
  return host->cancelled(context);
}

static HlrcStatus add_rows(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term,
                           uint64_t first_row, uint64_t rows, float *out) {
  (void)def, (void)context;
  for (uint64_t i = 0; i < rows * term->cols; i++) {
    float value;
    memcpy(&value, term->tensors[0].data + (first_row * term->cols + i) * 4, 4);
    out[i] += 2 * value;
  }
  return HLRC_OK;
}

static const HlrcPassDef pass_def = {
    .size = sizeof(HlrcPassDef),
    .name = TEXT("frozen"),
    .summary = TEXT("Keeps half of each entry."),
    .doc = TEXT("Keeps half of each entry, and a factor.\n"),
    .schema = TEXT("{\"type\":\"object\",\"properties\":{}}"),
    .create = create,
    .destroy = destroy,
    .traits = traits,
    .peel = peel,
};
static const HlrcPassDef *const passes[] = {&pass_def};
static const HlrcTermDef term_def = {
    .size = sizeof(HlrcTermDef),
    .name = TEXT("half"),
    .summary = TEXT("half of each entry"),
    .add_rows = add_rows,
};
static const HlrcTermDef *const terms[] = {&term_def};
static const HlrcPlugin plugin = {
    .size = sizeof(HlrcPlugin),
    .abi_major = 1,
    .abi_minor = 0,
    .name = TEXT("frozen"),
    .version = TEXT("1.0"),
    .passes = passes,
    .pass_count = 1,
    .terms = terms,
    .term_count = 1,
};

const HlrcPlugin *hlrc_plugin(const HlrcHost *given) {
  host = given;
  return given->size >= sizeof(HlrcHost) ? &plugin : NULL;
}
