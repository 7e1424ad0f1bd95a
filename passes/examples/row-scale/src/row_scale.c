/* A plugin in C, from the header alone: one scale per row and the signs of the entries.
 *
 * Before: linear %x { dense(@w) }
 * After:  linear %x { row_scale.signs(signs=@w.signs, scales=@w.scales) }
 *
 * The scale is the mean magnitude, which has the least squared error. Its kind of term has no kernel and no
 * ONNX form: rows are decoded, and exported dense.
 * Source: M. Rastegari et al., "XNOR-Net", arXiv 1603.05279.
 */
#include <stdlib.h>
#include <string.h>

#include "hlrc_pass.h"

#define TEXT(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}

static const HlrcHost *host;
static const HlrcStr kind = TEXT("row_scale.signs");

static HlrcStr text(const char *literal) {
  HlrcStr made = {(const uint8_t *)literal, strlen(literal)};
  return made;
}

static HlrcStatus failed(HlrcContext context, const char *why) {
  host->fail(context, text(why));
  return HLRC_ERROR;
}

static HlrcStatus create(const HlrcPassDef *def, HlrcContext context, HlrcStr options, HlrcUser *pass) {
  (void)def, (void)context, (void)options;
  *pass = NULL;
  return HLRC_OK;
}

static HlrcStatus traits(HlrcUser pass, HlrcContext context, HlrcMatrixTraits *traits) {
  (void)pass, (void)context;
  traits->access = HLRC_ACCESS_ROWS;
  traits->residual = HLRC_RESIDUAL_DROP;
  traits->quantizes = 1;
  return HLRC_OK;
}

static HlrcStatus cost(HlrcUser pass, HlrcContext context, uint64_t rows, uint64_t cols, HlrcCost *cost) {
  (void)pass, (void)context;
  cost->term_bytes = rows * ((cols + 7) / 8 + 4);
  cost->workspace_bytes = 2 * cost->term_bytes;
  cost->nanos = 2.0 * (double)rows * (double)cols;
  return HLRC_OK;
}

static HlrcStatus peel(HlrcUser pass, HlrcContext context, HlrcPeel *peel) {
  (void)pass;
  uint64_t rows = peel->rows, cols = peel->cols, row_bytes = (cols + 7) / 8;
  uint8_t *signs = calloc(rows, row_bytes);
  float *scales = malloc(rows * sizeof *scales);
  if (!signs || !scales) {
    free(signs), free(scales);
    return failed(context, "out of memory");
  }
  for (uint64_t r = 0; r < rows; r++) {
    float *row = peel->residual + r * cols;
    double sum = 0;
    for (uint64_t c = 0; c < cols; c++) sum += row[c] < 0 ? -row[c] : row[c];
    scales[r] = (float)(sum / (double)cols);
    for (uint64_t c = 0; c < cols; c++) {
      int negative = row[c] < 0;
      signs[r * row_bytes + c / 8] |= (uint8_t)(negative << (c % 8));
      row[c] -= negative ? -scales[r] : scales[r];
    }
  }
  uint64_t sign_dims[2] = {rows, row_bytes}, scale_dims[1] = {rows};
  HlrcTensor tensors[2] = {
      {TEXT("signs"), 2, 2, sign_dims, signs, rows * row_bytes}, /* 2: ONNX's number of u8 */
      {TEXT("scales"), 1, 1, scale_dims, (const uint8_t *)scales, rows * sizeof *scales}, /* 1: f32 */
  };
  HlrcStatus status = host->term_new(context, kind, text("{}"), rows, cols, tensors, 2, &peel->term);
  free(signs), free(scales);
  return status;
}

static HlrcStatus check(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term) {
  (void)def;
  if (term->tensor_count != 2) return failed(context, "it has two tensors, signs and scales");
  const HlrcTensor *signs = &term->tensors[0], *scales = &term->tensors[1];
  uint64_t row_bytes = (term->cols + 7) / 8;
  if (signs->dtype != 2 || signs->len != term->rows * row_bytes) return failed(context, "signs do not fit");
  if (scales->dtype != 1 || scales->len != term->rows * 4) return failed(context, "scales do not fit");
  return HLRC_OK;
}

static HlrcStatus add_rows(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term,
                           uint64_t first_row, uint64_t rows, float *out) {
  (void)def, (void)context;
  uint64_t cols = term->cols, row_bytes = (cols + 7) / 8;
  for (uint64_t r = 0; r < rows; r++) {
    const uint8_t *signs = term->tensors[0].data + (first_row + r) * row_bytes;
    float scale;
    memcpy(&scale, term->tensors[1].data + (first_row + r) * 4, 4); /* no alignment is promised */
    for (uint64_t c = 0; c < cols; c++) out[r * cols + c] += signs[c / 8] >> (c % 8) & 1 ? -scale : scale;
  }
  return HLRC_OK;
}

static const HlrcPassDef pass_def = {
    .size = sizeof(HlrcPassDef),
    .name = TEXT("row-scale"),
    .summary = TEXT("One scale per row, and the signs of its entries."),
    .doc = TEXT("One scale per row, and the signs of its entries.\n\n"
                "Before: `linear %x { dense(@w) }`\n"
                "After:  `linear %x { row_scale.signs(signs=@w.signs, scales=@w.scales) }`\n\n"
                "Cost: two readings of each row. A bit per entry, 4 bytes per row.\n"
                "Source: M. Rastegari et al., \"XNOR-Net\", arXiv 1603.05279.\n"),
    .schema = TEXT("{\"type\":\"object\",\"properties\":{},\"additionalProperties\":false}"),
    .create = create,
    .traits = traits,
    .cost = cost,
    .peel = peel,
};
static const HlrcPassDef *const passes[] = {&pass_def};

static const HlrcTermDef term_def = {
    .size = sizeof(HlrcTermDef),
    .name = TEXT("signs"),
    .summary = TEXT("one scale per row and a sign per entry"),
    .check = check,
    .add_rows = add_rows,
};
static const HlrcTermDef *const terms[] = {&term_def};

static const HlrcPlugin plugin = {
    .size = sizeof(HlrcPlugin),
    .abi_major = HLRC_ABI_MAJOR,
    .abi_minor = 0,
    .name = TEXT("row-scale"),
    .version = TEXT("0.1.0"),
    .passes = passes,
    .pass_count = 1,
    .terms = terms,
    .term_count = 1,
};

/* In a library without Rust around it, this is `hlrc_plugin`. */
const HlrcPlugin *row_scale_plugin(const HlrcHost *given);
const HlrcPlugin *row_scale_plugin(const HlrcHost *given) {
  host = given;
  return &plugin;
}
