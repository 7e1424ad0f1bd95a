/* A kind of term with everything that a kind can have: half of each entry, and a factor of two. HOW says which
 * of its functions is wrong. */
#include "frame.h"

static HlrcStatus peel(HlrcUser pass, HlrcContext context, HlrcPeel *peel) {
  (void)pass;
  uint64_t entries = peel->rows * peel->cols;
  float *half = malloc(entries * sizeof *half);
  for (uint64_t i = 0; i < entries; i++) half[i] = peel->residual[i] / 2, peel->residual[i] = 0;
  HlrcStatus status = term_of(context, "halves.half", "values", peel->rows, peel->cols, half, &peel->term);
  free(half);
  return status;
}

static HlrcStatus add_rows(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term,
                           uint64_t first_row, uint64_t rows, float *out) {
  (void)def, (void)context;
  for (uint64_t i = 0; i < rows * term->cols; i++) {
    float value = 2 * entry(term, first_row * term->cols + i);
    if (HOW == 3 && rows == 7)
      out[i] = value; /* writes where it should add */
    else
      out[i] += value;
  }
  return HLRC_OK;
}

static HlrcStatus multiply(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term,
                           uint64_t first_row, uint64_t rows, const float *x, uint64_t tokens, float *out) {
  (void)def, (void)context;
  uint64_t cols = term->cols;
  for (uint64_t t = 0; t < tokens; t++)
    for (uint64_t r = 0; r < rows; r++) {
      float sum = 0;
      for (uint64_t c = HOW == 1; c < cols; c++) sum += x[t * cols + c] * 2 * entry(term, (first_row + r) * cols + c);
      out[t * rows + r] = sum;
    }
  return HLRC_OK;
}

static HlrcStatus backward(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term, const float *dw,
                           float *const *gradients) {
  (void)def, (void)context;
  for (uint64_t i = 0; i < term->rows * term->cols; i++) gradients[0][i] = (HOW == 2 ? 1 : 2) * dw[i];
  return HLRC_OK;
}

static HlrcStatus onnx(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term) {
  (void)def;
  HlrcStr values = TEXT("values"), nothing = TEXT("nothing"), matrix = TEXT("matrix");
  HlrcStr inputs[2] = {values, HOW == 4 ? nothing : values};
  HlrcOnnxNode node = {.size = sizeof node, .op_type = TEXT("Add"), .inputs = inputs, .input_count = 2};
  node.output = matrix;
  if (host->onnx_tensor(context, &term->tensors[0]) != HLRC_OK) return HLRC_ERROR;
  if (host->onnx_node(context, &node) != HLRC_OK) return HLRC_ERROR;
  return host->onnx_output(context, matrix, 13);
}

static const HlrcPassDef pass_def = {
    PASS("halves", "Keeps half of each entry."),
    .create = create,
    .traits = drops_rows,
    .peel = peel,
};
static const HlrcPassDef *const passes[] = {&pass_def};
static const HlrcTermDef term_def = {
    KIND("half", "half of each entry"),
    .add_rows = add_rows,
    .multiply = multiply,
    .onnx = onnx,
    .backward = backward,
};
static const HlrcTermDef *const terms[] = {&term_def};

PLUGIN("halves", 1, /* the backward rule */ TERMS)
