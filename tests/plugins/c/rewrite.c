/* What a plugin can do and no example does: `chain` makes ops, values and weights (each linear becomes one of
 * half its matrix, and one that doubles), `handles` reads terms that it has made and gives them back. */
#include "frame.h"

/* A weight of f32 values. */
static HlrcStatus weight(HlrcContext context, const char *name, uint64_t rows, uint64_t cols, const float *values,
                         uint32_t *made) {
  uint64_t dims[2] = {rows, cols};
  HlrcTensor tensor = {text(name), 1, 2, dims, (const uint8_t *)values, rows * cols * sizeof *values};
  return host->weight_new(context, &tensor, made);
}

/* A linear of one dense weight. */
static HlrcStatus linear(HlrcContext context, uint64_t rows, uint64_t cols, uint32_t weight, HlrcOperand input,
                         uint32_t result, const char *name, HlrcOpRef *made) {
  char attributes[64];
  snprintf(attributes, sizeof attributes, "{\"rows\":%" PRIu64 ",\"cols\":%" PRIu64 "}", rows, cols);
  TRY(host->op_new(context, 0, text("linear"), text(attributes), made));
  TRY(host->op_set_name(context, *made, text(name)));
  TRY(host->op_set_inputs(context, *made, &input, 1));
  TRY(host->op_set_results(context, *made, &result, 1));
  TRY(host->op_add_term(context, *made, text("dense"), text(""), NULL, &weight, 1));
  return HLRC_OK;
}

static HlrcStatus run(HlrcUser pass, HlrcContext context) {
  (void)pass;
  HlrcStr whole;
  TRY(host->module_text(context, &whole));
  EXPECT(whole.len > 6 && memcmp(whole.data, "hlir 1", 6) == 0);
  HlrcGraphInfo graph = {.size = sizeof graph};
  TRY(host->graph_info(context, 0, &graph));
  EXPECT(graph.op_count == 1 && graph.output_count == 1 && graph.input_count == 1);
  HlrcOpRef at = {0, graph.ops[0]}, ops[2];
  HlrcOpInfo op = {.size = sizeof op};
  TRY(host->op_info(context, at, &op));
  EXPECT(op.rows == 8 && op.cols == 8 && op.term_count == 1 && op.bias == HLRC_NO_ID);
  EXPECT(op.attributes.len > 2 && op.attributes.data[0] == '{');
  HlrcValueInfo result = {.size = sizeof result};
  TRY(host->value_info(context, 0, op.results[0], &result));
  EXPECT(is(result.ty, "f32[B,8]"));
  EXPECT(host->value_info(context, 0, 4000, &result) == HLRC_INVALID);
  HlrcWeightInfo stored = {.size = sizeof stored};
  TRY(host->weight_info(context, 0, &stored));
  EXPECT(stored.dtype == 1 && stored.rank == 2 && stored.dims[0] == 8 && stored.bytes == 256);

  float half[64], twice[64] = {0};
  TRY(host->op_rows(context, at, 0, 8, half));
  for (int i = 0; i < 64; i++) half[i] /= 2;
  for (int i = 0; i < 8; i++) twice[9 * i] = 2;
  uint32_t weights[2], between, outputs = op.results[0];
  TRY(weight(context, "q.half", 8, 8, half, &weights[0]));
  TRY(weight(context, "q.twice", 8, 8, twice, &weights[1]));
  TRY(host->value_new(context, 0, text("h"), text("f32[B,8]"), &between));
  EXPECT(host->value_new(context, 0, text("h"), text("no type"), &between) == HLRC_INVALID);
  HlrcOperand middle = {HLRC_OPERAND_VALUE, between};
  TRY(linear(context, 8, 8, weights[0], op.inputs[0], between, "q.half", &ops[0]));
  TRY(linear(context, 8, 8, weights[1], middle, outputs, "q.twice", &ops[1]));
  TRY(host->op_replace(context, at, ops, 2));
  TRY(host->weight_drop(context, 0));
  HlrcOperand ports[2] = {graph.outputs[0], middle};
  return host->graph_set_ports(context, 0, graph.inputs, 1, ports, 2);
}

static HlrcStatus traits(HlrcUser pass, HlrcContext context, HlrcMatrixTraits *traits) {
  (void)pass, (void)context;
  traits->access = HLRC_ACCESS_WHOLE;
  traits->residual = HLRC_RESIDUAL_KEEP;
  return HLRC_OK;
}

static HlrcStatus peel(HlrcUser pass, HlrcContext context, HlrcPeel *peel) {
  (void)pass;
  HlrcTerm term = 0;
  HlrcTermView view = {.size = sizeof view};
  HlrcEarlier earlier = {.size = sizeof earlier};
  float rows[16] = {0};
  TRY(term_of(context, "dense", "weight", 8, 8, peel->residual, &term));
  TRY(host->term_view(context, term, &view));
  EXPECT(view.rows == 8 && view.tensor_count == 1 && memcmp(view.tensors[0].data, peel->residual, 256) == 0);
  TRY(host->term_add_rows(context, term, 3, 2, rows));
  EXPECT(memcmp(rows, peel->residual + 24, sizeof rows) == 0);
  EXPECT(host->term_add_rows(context, term, 7, 2, rows) == HLRC_INVALID);
  TRY(host->term_drop(context, term));
  EXPECT(host->term_view(context, term, &view) == HLRC_INVALID);
  EXPECT(host->term_drop(context, term) == HLRC_INVALID);
  /* The term of the pass before: outliers that this one leaves as they are. */
  EXPECT(peel->earlier_count == 1);
  TRY(host->earlier(context, 0, &earlier));
  TRY(host->term_view(context, earlier.term, &view));
  EXPECT(is(view.kind, "sparse"));
  TRY(host->earlier_set(context, 0, earlier.term));
  return host->note(context, text("nothing"));
}

static const HlrcPassDef chain = {
    PASS("chain", "Makes two linears of one."),
    .create = create,
    .run = run,
};
static const HlrcPassDef handles = {
    PASS("handles", "Reads terms."),
    .create = create,
    .traits = traits,
    .peel = peel,
};
static const HlrcPassDef *const passes[] = {&chain, &handles};

PLUGIN("rewrite", 1, /* term_drop */ NO_TERMS)
