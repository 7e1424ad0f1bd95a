/* Calls every function of the host, well and badly: `ask` in a module pass, `take` in a peel, `calls.even` for a
 * kind's ONNX form; each where it means nothing too. `slow` tells of its progress for some seconds. */
#define _GNU_SOURCE
#include <unistd.h>

#include "frame.h"

/* The host refuses a call, and says why. */
#define REFUSED(call, why) \
  do { \
    HlrcStatus status = (call); \
    HlrcStr said = TEXT(""); \
    if (status != HLRC_INVALID) return fails(context, "not refused: " #call, status); \
    if (host->last_error(context, &said) != HLRC_OK || !has(said, why)) return fails(context, #call, status); \
  } while (0)

static int has(HlrcStr text, const char *part) {
  size_t len = strlen(part);
  for (size_t i = 0; i + len <= text.len; i++)
    if (memcmp(text.data + i, part, len) == 0) return 1;
  return 0;
}

static HlrcContext ended;
static const HlrcStr not_utf8 = {(const uint8_t *)"\xff\xfe", 2};
static const HlrcOpRef first = {0, 0}, nowhere = {7, 7};
static const char *const null = "null pointer";

static HlrcStatus remember(const HlrcPassDef *def, HlrcContext context, HlrcStr options, HlrcUser *pass) {
  (void)def, (void)options;
  ended = context;
  *pass = NULL;
  return HLRC_OK;
}

/* Every call by a context that means nothing has this status, and writes nothing. */
static const char *all_say(HlrcContext at, HlrcStatus expected) {
  static const uint64_t dims[2] = {1, 1};
  static const float zero[1] = {0};
  HlrcTensor tensor = {TEXT("x"), 1, 2, dims, (const uint8_t *)zero, sizeof zero};
  HlrcOnnxNode node = {.size = sizeof node};
  HlrcStr x = text("x"), out = TEXT("kept");
  HlrcTerm term = 77;
  HlrcTermView view = {.size = sizeof view, .rows = 77};
  HlrcEarlier earlier = {.size = sizeof earlier, .term = 77};
  HlrcGraphInfo graph = {.size = sizeof graph, .op_count = 77};
  HlrcOpInfo op = {.size = sizeof op, .rows = 77};
  HlrcValueInfo value = {.size = sizeof value, .name = out};
  HlrcWeightInfo weight = {.size = sizeof weight, .bytes = 77};
  HlrcMoments moments = {.size = sizeof moments, .width = 77};
  HlrcOpRef fresh = {77, 77};
  HlrcOperand operand = {HLRC_OPERAND_NONE, 0};
  uint32_t number = 77;
  uint64_t word = 77;
  float row[1] = {77};
#define SAYS(call) if ((call) != expected) return #call
  SAYS(host->fail(at, x));
  SAYS(host->last_error(at, &out));
  SAYS(host->remark(at, HLRC_REMARK_PASSED, x, x));
  SAYS(host->progress(at, 1, 2));
  SAYS(host->cancelled(at));
  SAYS(host->random(at, &word, 1));
  SAYS(host->seed(at, &word));
  SAYS(host->term_new(at, text("dense"), x, 1, 1, &tensor, 1, &term));
  SAYS(host->term_view(at, 1, &view));
  SAYS(host->term_add_rows(at, 1, 0, 1, row));
  SAYS(host->term_drop(at, 1));
  SAYS(host->note(at, x));
  SAYS(host->earlier(at, 0, &earlier));
  SAYS(host->earlier_set(at, 0, 1));
  SAYS(host->module_text(at, &out));
  SAYS(host->module_set_text(at, x));
  SAYS(host->graph_count(at, &number));
  SAYS(host->graph_info(at, 0, &graph));
  SAYS(host->graph_set_ports(at, 0, &number, 1, &operand, 1));
  SAYS(host->op_info(at, first, &op));
  SAYS(host->op_term(at, first, 0, &term));
  SAYS(host->op_rows(at, first, 0, 1, row));
  SAYS(host->op_site(at, first, &out));
  SAYS(host->op_new(at, 0, x, x, &fresh));
  SAYS(host->op_copy(at, first, &fresh));
  SAYS(host->op_set_name(at, first, x));
  SAYS(host->op_set_inputs(at, first, &operand, 1));
  SAYS(host->op_set_results(at, first, &number, 1));
  SAYS(host->op_clear_terms(at, first));
  SAYS(host->op_add_term(at, first, x, x, NULL, &number, 1));
  SAYS(host->op_replace(at, first, NULL, 0));
  SAYS(host->moments(at, x, &moments));
  SAYS(host->value_info(at, 0, 0, &value));
  SAYS(host->value_new(at, 0, x, x, &number));
  SAYS(host->weight_count(at, &number));
  SAYS(host->weight_info(at, 0, &weight));
  SAYS(host->weight_data(at, 0, &tensor));
  SAYS(host->weight_new(at, &tensor, &number));
  SAYS(host->weight_drop(at, 0));
  SAYS(host->onnx_tensor(at, &tensor));
  SAYS(host->onnx_node(at, &node));
  SAYS(host->onnx_output(at, x, 13));
  int kept = is(out, "kept") && term == 77 && view.rows == 77 && earlier.term == 77 && graph.op_count == 77 &&
             op.rows == 77 && is(value.name, "kept") && weight.bytes == 77 && moments.width == 77 &&
             fresh.op == 77 && number == 77 && word == 77 && row[0] == 77 && tensor.len == sizeof zero;
  return kept ? NULL : "a refused call wrote something";
}

/* What every callback can ask. */
static HlrcStatus everywhere(HlrcContext context) {
  const char *wrong = all_say(0, HLRC_INVALID);
  if (!wrong) wrong = all_say(UINT64_MAX, HLRC_INVALID);
  if (!wrong) wrong = all_say(ended, HLRC_EXPIRED);
  if (wrong) return says(context, wrong);

  HlrcStr said = TEXT("");
  EXPECT(host->last_error(context, NULL) == HLRC_INVALID);
  TRY(host->last_error(context, &said));
  EXPECT(has(said, null)); /* why the call before was refused */
  REFUSED(host->fail(context, not_utf8), "no UTF-8");
  HlrcStr gone = {NULL, 5};
  REFUSED(host->fail(context, gone), null);
  REFUSED(host->remark(context, 9, text("x"), text("x")), "a remark of kind 9");
  REFUSED(host->remark(context, HLRC_REMARK_MISSED, not_utf8, text("x")), "no UTF-8");
  TRY(host->remark(context, HLRC_REMARK_MISSED, text(""), text("about the one at hand")));
  TRY(host->progress(context, 1, 2));
  TRY(host->cancelled(context));

  uint64_t seed = 0, words[3] = {0}, more[2] = {0};
  REFUSED(host->seed(context, NULL), null);
  TRY(host->seed(context, &seed));
  TRY(host->random(context, NULL, 0));
  REFUSED(host->random(context, NULL, 1), null);
  REFUSED(host->random(context, (uint64_t *)(void *)((char *)words + 1), 1), "not aligned");
  REFUSED(host->random(context, words, SIZE_MAX), "more than memory has");
  TRY(host->random(context, words, 3));
  TRY(host->random(context, more, 2));
  EXPECT(words[0] != words[1] && words[1] != words[2] && words[2] != more[0] && more[0] != more[1]);
  REFUSED(host->note(context, not_utf8), "no UTF-8");
  return host->note(context, text("asked"));
}

/* Terms by handle, in every callback too. */
static HlrcStatus handles(HlrcContext context) {
  static const uint64_t dims[2] = {2, 3};
  static const float values[6] = {1, 2, 3, 4, 5, 6};
  HlrcTensor tensor = {TEXT("weight"), 1, 2, dims, (const uint8_t *)values, sizeof values}, wrong = tensor;
  HlrcTerm term = 0;
  HlrcTermView view = {.size = sizeof view};
  HlrcStr dense = text("dense"), none = text("");
  TRY(host->term_new(context, dense, none, 2, 3, &tensor, 1, &term));
  REFUSED(host->term_new(context, dense, none, 2, 3, &tensor, 1, NULL), null);
  REFUSED(host->term_new(context, dense, none, 2, 3, NULL, 1, &term), null);
  REFUSED(host->term_new(context, dense, none, 2, 3, &tensor, 0, &term), "");
  REFUSED(host->term_new(context, dense, none, 3, 2, &tensor, 1, &term), "`weight` is [2, 3]: its first side is 3");
  REFUSED(host->term_new(context, dense, text("[]"), 2, 3, &tensor, 1, &term), "attributes of `dense`");
  REFUSED(host->term_new(context, text("no-kind"), none, 2, 3, &tensor, 1, &term), "no-kind");
  REFUSED(host->term_new(context, text("calls.none"), none, 2, 3, &tensor, 1, &term), "no loaded plugin");
  /* Factors that are turned over have as many bytes. */
  static const uint64_t u_turned[2] = {1, 2}, v_turned[2] = {3, 1};
  HlrcTensor turned[2] = {{TEXT("u"), 1, 2, u_turned, (const uint8_t *)values, 8},
                          {TEXT("v"), 1, 2, v_turned, (const uint8_t *)values, 12}};
  HlrcStr block = TEXT("{\"blocks\":[[0,2,0,3,1]],\"format\":\"f32\"}");
  REFUSED(host->term_new(context, text("low_rank"), block, 2, 3, turned, 2, &term), "`u` is [1, 2]: its first side is 2");
  wrong.dims = NULL;
  REFUSED(host->term_new(context, dense, none, 2, 3, &wrong, 1, &term), null);
  wrong = tensor, wrong.rank = 1;
  REFUSED(host->term_new(context, dense, none, 2, 3, &wrong, 1, &term), "takes 8 bytes, 24 are given");
  TRY(host->term_view(context, term, &view));
  EXPECT(is(view.kind, "dense") && is(view.attributes, "{}") && view.rows == 2 && view.cols == 3);
  EXPECT(view.tensor_count == 1 && view.tensors[0].rank == 2 && view.tensors[0].dims[1] == 3);
  EXPECT(memcmp(view.tensors[0].data, values, sizeof values) == 0);
  /* A struct of an older header is filled as far as it goes. */
  HlrcTermView older = {.size = offsetof(HlrcTermView, cols), .cols = 77, .tensor_count = 77};
  TRY(host->term_view(context, term, &older));
  EXPECT(older.rows == 2 && older.cols == 77 && older.tensor_count == 77);
  older.size = 0;
  REFUSED(host->term_view(context, term, &older), "`size` of the struct is not set");
  REFUSED(host->term_view(context, term, NULL), null);
  REFUSED(host->term_view(context, 0, &view), "no term has the handle 0");
  float rows[6] = {10, 10, 10, 10, 10, 10};
  TRY(host->term_add_rows(context, term, 1, 1, rows));
  EXPECT(rows[0] == 14 && rows[2] == 16 && rows[3] == 10);
  TRY(host->term_add_rows(context, term, 2, 0, NULL));
  REFUSED(host->term_add_rows(context, term, 1, 2, rows), "of 2");
  REFUSED(host->term_add_rows(context, term, UINT64_MAX, 2, rows), "of 2");
  REFUSED(host->term_add_rows(context, term, 0, 1, NULL), null);
  REFUSED(host->term_add_rows(context, 99, 0, 1, rows), "no term has the handle 99");
  TRY(host->term_drop(context, term));
  REFUSED(host->term_drop(context, term), "no term has the handle");
  return HLRC_OK;
}

/* What belongs to other callbacks. */
static HlrcStatus not_here(HlrcContext context, int module, int peel, int onnx) {
  static const uint64_t dims[2] = {1, 1};
  static const float zero[1] = {0};
  HlrcTensor tensor = {TEXT("x"), 1, 2, dims, (const uint8_t *)zero, sizeof zero};
  HlrcOnnxNode node = {.size = sizeof node, .op_type = TEXT("Add"), .output = TEXT("x")};
  HlrcEarlier earlier = {.size = sizeof earlier};
  HlrcStr out = TEXT("");
  uint32_t number = 0;
  const char *of_module = "only a module pass sees the module";
  if (!module) {
    REFUSED(host->graph_count(context, &number), of_module);
    REFUSED(host->module_text(context, &out), of_module);
    REFUSED(host->weight_new(context, &tensor, &number), of_module);
    REFUSED(host->op_site(context, first, &out), of_module);
  }
  if (!peel) REFUSED(host->earlier(context, 0, &earlier), "only a peel has earlier terms");
  if (!onnx) {
    REFUSED(host->onnx_tensor(context, &tensor), "gives an ONNX form");
    REFUSED(host->onnx_node(context, &node), "gives an ONNX form");
    REFUSED(host->onnx_output(context, out, 13), "gives an ONNX form");
  }
  return HLRC_OK;
}

/* Reads a module of a linear, op 0, and an op without a matrix behind it. */
static HlrcStatus reads(HlrcContext context) {
  HlrcStr whole = TEXT("");
  uint32_t number = 0;
  REFUSED(host->module_text(context, NULL), null);
  TRY(host->module_text(context, &whole));
  EXPECT(has(whole, "linear %x [8,8]"));
  REFUSED(host->module_set_text(context, text("hlir 1 this is no module")), "expected");
  REFUSED(host->module_set_text(context, not_utf8), "no UTF-8");
  REFUSED(host->graph_count(context, NULL), null);
  TRY(host->graph_count(context, &number));
  EXPECT(number == 1);

  HlrcGraphInfo graph = {.size = sizeof graph};
  REFUSED(host->graph_info(context, 7, &graph), "there is no graph 7");
  REFUSED(host->graph_info(context, 0, NULL), null);
  TRY(host->graph_info(context, 0, &graph));
  EXPECT(is(graph.name, "main") && graph.op_count == 2 && graph.input_count == 1 && graph.output_count == 1);
  HlrcOpRef at = {0, graph.ops[0]}, plain = {0, graph.ops[1]};

  HlrcOpInfo op = {.size = sizeof op};
  REFUSED(host->op_info(context, nowhere, &op), "graph 7 has no op 7");
  REFUSED(host->op_info(context, at, NULL), null);
  TRY(host->op_info(context, plain, &op));
  EXPECT(op.rows == 0 && op.term_count == 0 && is(op.kind, "onnx.Relu"));
  TRY(host->op_info(context, at, &op));
  EXPECT(is(op.kind, "linear") && is(op.name, "q") && op.rows == 8 && op.term_count == 1);

  HlrcTerm term = 0;
  REFUSED(host->op_term(context, nowhere, 0, &term), "graph 7 has no op 7");
  REFUSED(host->op_term(context, plain, 0, &term), "the op has no matrix");
  REFUSED(host->op_term(context, at, 5, &term), "the op has no term 5");
  REFUSED(host->op_term(context, at, 0, NULL), null);
  TRY(host->op_term(context, at, 0, &term));
  float rows[16] = {0}, again[16] = {0};
  REFUSED(host->op_rows(context, nowhere, 0, 1, rows), "graph 7 has no op 7");
  REFUSED(host->op_rows(context, plain, 0, 1, rows), "the op has no matrix");
  REFUSED(host->op_rows(context, at, 7, 2, rows), "of 8");
  REFUSED(host->op_rows(context, at, 0, 2, NULL), null);
  TRY(host->op_rows(context, at, 3, 2, rows));
  TRY(host->term_add_rows(context, term, 3, 2, again));
  EXPECT(memcmp(rows, again, sizeof rows) == 0 && rows[0] != 0);

  HlrcStr site = TEXT("");
  HlrcMoments moments = {.size = sizeof moments};
  REFUSED(host->op_site(context, nowhere, &site), "graph 7 has no op 7");
  REFUSED(host->op_site(context, at, NULL), null);
  EXPECT(host->op_site(context, plain, &site) == HLRC_NONE);
  TRY(host->op_site(context, at, &site));
  EXPECT(is(site, "q"));
  REFUSED(host->moments(context, text("nowhere"), &moments), "there is no site `nowhere`");
  REFUSED(host->moments(context, not_utf8, &moments), "no UTF-8");
  EXPECT(host->moments(context, site, &moments) == HLRC_NONE);

  HlrcValueInfo value = {.size = sizeof value};
  REFUSED(host->value_info(context, 0, 4000, &value), "graph 0 has no value 4000");
  REFUSED(host->value_info(context, 7, 0, &value), "graph 7 has no value 0");
  REFUSED(host->value_info(context, 0, op.results[0], NULL), null);
  TRY(host->value_info(context, 0, op.results[0], &value));
  EXPECT(is(value.name, "h") && is(value.ty, "f32[B,8]"));

  HlrcWeightInfo weight = {.size = sizeof weight};
  HlrcTensor data;
  REFUSED(host->weight_count(context, NULL), null);
  TRY(host->weight_count(context, &number));
  EXPECT(number == 1);
  REFUSED(host->weight_info(context, 1, &weight), "there is no weight 1");
  REFUSED(host->weight_info(context, 0, NULL), null);
  TRY(host->weight_info(context, 0, &weight));
  EXPECT(is(weight.name, "q.weight") && weight.bytes == 256);
  REFUSED(host->weight_data(context, 1, &data), "there is no weight 1");
  REFUSED(host->weight_data(context, 0, NULL), null);
  TRY(host->weight_data(context, 0, &data));
  EXPECT(data.len == 256 && memcmp(data.data + 3 * 32, rows, sizeof rows) == 0);
  return HLRC_OK;
}

/* Edits it: nothing that was refused may show in the end. */
static HlrcStatus edits(HlrcContext context) {
  static const uint64_t dims[2] = {8, 8};
  static float twos[64];
  for (int i = 0; i < 8; i++) twos[9 * i] = 2;
  HlrcTensor tensor = {TEXT("q.twos"), 1, 2, dims, (const uint8_t *)twos, sizeof twos}, wrong = tensor;
  HlrcStr linear = TEXT("linear"), sides = TEXT("{\"rows\":8,\"cols\":8}"), none = TEXT("");
  HlrcGraphInfo graph = {.size = sizeof graph};
  HlrcOpInfo op = {.size = sizeof op};
  HlrcOpRef fresh, copy;
  uint32_t weight = 0, value = 0, count = 0, missing = 4321;
  TRY(host->graph_info(context, 0, &graph));
  HlrcOpRef at = {0, graph.ops[0]}, plain = {0, graph.ops[1]};
  TRY(host->op_info(context, at, &op));

  REFUSED(host->weight_new(context, NULL, &weight), null);
  wrong.name = text("q.refused");
  REFUSED(host->weight_new(context, &wrong, NULL), null);
  wrong.len = 4;
  REFUSED(host->weight_new(context, &wrong, &weight), "takes 256 bytes, 4 are given");
  wrong = tensor, wrong.name = text("q.weight");
  REFUSED(host->weight_new(context, &wrong, &weight), "can't be called `q.weight`");
  wrong.name = none;
  REFUSED(host->weight_new(context, &wrong, &weight), "can't be called ``");
  TRY(host->weight_new(context, &tensor, &weight));
  TRY(host->weight_count(context, &count));
  EXPECT(weight == 1 && count == 2);
  REFUSED(host->weight_drop(context, missing), "there is no weight 4321");
  TRY(host->weight_drop(context, 0)); /* the copy below refers to it: it stays */

  REFUSED(host->value_new(context, 7, text("v"), none, &value), "there is no graph 7");
  REFUSED(host->value_new(context, 0, text("v"), text("no type"), &value), "");
  REFUSED(host->value_new(context, 0, not_utf8, none, &value), "no UTF-8");
  REFUSED(host->value_new(context, 0, text("refused"), none, NULL), null);
  TRY(host->value_new(context, 0, text("made"), text("f32[B,8]"), &value));
  HlrcOperand made = {HLRC_OPERAND_VALUE, value}, odd = {9, 0}, no_value = {HLRC_OPERAND_VALUE, missing},
              no_weight = {HLRC_OPERAND_WEIGHT, missing};

  REFUSED(host->op_new(context, 7, linear, sides, &fresh), "there is no graph 7");
  REFUSED(host->op_new(context, 0, linear, sides, NULL), null);
  REFUSED(host->op_new(context, 0, linear, none, &fresh), "needs the number `rows`");
  REFUSED(host->op_new(context, 0, linear, text("nothing"), &fresh), "attributes of `linear`");
  REFUSED(host->op_new(context, 0, text("no-op"), none, &fresh), "`no-op`");
  REFUSED(host->op_new(context, 0, text("moe"), none, &fresh), "can be copied, not made");
  HlrcStr branch = TEXT("{\"then_branch\":{\"region\":\"main\"}}");
  REFUSED(host->op_new(context, 0, text("onnx.If"), branch, &fresh), "`then_branch` is a graph");
  TRY(host->op_new(context, 0, linear, sides, &fresh));
  REFUSED(host->op_copy(context, nowhere, &copy), "graph 7 has no op 7");
  REFUSED(host->op_copy(context, at, NULL), null);
  TRY(host->op_copy(context, at, &copy));

  REFUSED(host->op_set_name(context, at, text("x")), "is not new");
  REFUSED(host->op_set_name(context, fresh, not_utf8), "no UTF-8");
  TRY(host->op_set_name(context, fresh, text("doubled")));
  REFUSED(host->op_set_inputs(context, at, &made, 1), "is not new");
  REFUSED(host->op_set_inputs(context, fresh, NULL, 1), null);
  REFUSED(host->op_set_inputs(context, fresh, &odd, 1), "an operand of kind 9");
  REFUSED(host->op_set_inputs(context, fresh, &no_value, 1), "graph 0 has no value 4321");
  REFUSED(host->op_set_inputs(context, fresh, &no_weight, 1), "there is no weight 4321");
  TRY(host->op_set_inputs(context, fresh, &made, 1));
  REFUSED(host->op_set_results(context, at, op.results, 1), "is not new");
  REFUSED(host->op_set_results(context, fresh, NULL, 1), null);
  REFUSED(host->op_set_results(context, fresh, &missing, 1), "graph 0 has no value 4321");
  TRY(host->op_set_results(context, fresh, op.results, 1));
  TRY(host->op_set_results(context, copy, &value, 1));

  HlrcOpRef relu;
  TRY(host->op_copy(context, plain, &relu));
  REFUSED(host->op_clear_terms(context, at), "is not new");
  REFUSED(host->op_clear_terms(context, relu), "the op has no matrix");
  HlrcStr dense = TEXT("dense");
  TRY(host->op_add_term(context, fresh, dense, none, NULL, &weight, 1));
  TRY(host->op_clear_terms(context, fresh));
  REFUSED(host->op_add_term(context, at, dense, none, NULL, &weight, 1), "is not new");
  REFUSED(host->op_add_term(context, relu, dense, none, NULL, &weight, 1), "the op has no matrix");
  REFUSED(host->op_add_term(context, fresh, dense, none, NULL, &missing, 1), "there is no weight 4321");
  REFUSED(host->op_add_term(context, fresh, dense, none, NULL, NULL, 1), null);
  REFUSED(host->op_add_term(context, fresh, dense, none, NULL, &weight, 0), "has 1 tensors, 0 are given");
  REFUSED(host->op_add_term(context, fresh, text("no-kind"), none, NULL, &weight, 1), "no-kind");
  REFUSED(host->op_add_term(context, fresh, text("calls.even"), none, NULL, &weight, 1), "tensors' names");
  TRY(host->op_add_term(context, fresh, dense, none, NULL, &weight, 1));

  HlrcOpRef both[2] = {copy, fresh}, elsewhere = {7, fresh.op};
  REFUSED(host->op_replace(context, nowhere, both, 2), "graph 7 has no op 7");
  REFUSED(host->op_replace(context, fresh, both, 2), "a new op stands nowhere");
  REFUSED(host->op_replace(context, at, NULL, 2), null);
  REFUSED(host->op_replace(context, at, &elsewhere, 1), "of another graph");
  REFUSED(host->op_replace(context, at, &plain, 1), "or twice");
  TRY(host->op_replace(context, at, both, 2));

  REFUSED(host->graph_set_ports(context, 7, NULL, 0, NULL, 0), "there is no graph 7");
  REFUSED(host->graph_set_ports(context, 0, &missing, 1, NULL, 0), "graph 0 has no value 4321");
  REFUSED(host->graph_set_ports(context, 0, NULL, 1, NULL, 0), null);
  REFUSED(host->graph_set_ports(context, 0, graph.inputs, 1, &odd, 1), "an operand of kind 9");
  HlrcOperand outputs[2] = {graph.outputs[0], made};
  return host->graph_set_ports(context, 0, graph.inputs, 1, outputs, 2);
}

static HlrcStatus run(HlrcUser pass, HlrcContext context) {
  (void)pass;
  HlrcStatus status = everywhere(context);
  if (status == HLRC_OK) status = handles(context);
  if (status == HLRC_OK) status = not_here(context, 1, 0, 0);
  if (status == HLRC_OK) status = reads(context);
  return status == HLRC_OK ? edits(context) : status;
}

static HlrcStatus peel(HlrcUser pass, HlrcContext context, HlrcPeel *peel) {
  (void)pass;
  HlrcStatus status = everywhere(context);
  if (status == HLRC_OK) status = handles(context);
  if (status == HLRC_OK) status = not_here(context, 0, 1, 0);
  if (status != HLRC_OK) return status;
  HlrcEarlier earlier = {.size = sizeof earlier};
  HlrcTerm other = 0;
  HlrcTermView view = {.size = sizeof view};
  static const float values[2] = {1, 2};
  EXPECT(peel->earlier_count == 1);
  REFUSED(host->earlier(context, 1, &earlier), "no earlier term 1, there are 1");
  REFUSED(host->earlier(context, 0, NULL), null);
  TRY(host->earlier(context, 0, &earlier));
  TRY(host->term_view(context, earlier.term, &view));
  EXPECT(is(view.kind, "sparse") && view.rows == 8 && earlier.traits.access <= HLRC_ACCESS_WHOLE);
  TRY(term_of(context, "dense", "weight", 1, 2, values, &other));
  REFUSED(host->earlier_set(context, 0, other), "another shape");
  REFUSED(host->earlier_set(context, 1, earlier.term), "no earlier term 1");
  REFUSED(host->earlier_set(context, 0, 99), "no term has the handle 99");
  TRY(host->earlier_set(context, 0, earlier.term));
  static const uint64_t dims[2] = {1, 1};
  static const float zero[1] = {0};
  HlrcTensor value = {TEXT("value"), 1, 2, dims, (const uint8_t *)zero, sizeof zero};
  return host->term_new(context, text("calls.even"), text(""), 8, 8, &value, 1, &peel->term);
}

static HlrcStatus add_rows(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term,
                           uint64_t first_row, uint64_t rows, float *out) {
  (void)def, (void)context;
  (void)first_row;
  for (uint64_t i = 0; i < rows * term->cols; i++) out[i] += entry(term, 0);
  return HLRC_OK;
}

static HlrcStatus onnx(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term) {
  (void)def;
  HlrcStatus status = everywhere(context);
  if (status == HLRC_OK) status = handles(context);
  if (status == HLRC_OK) status = not_here(context, 0, 0, 1);
  if (status != HLRC_OK) return status;
  HlrcStr inputs[2] = {TEXT("value"), TEXT("shape")};
  uint64_t dims[1] = {2}, sides[2] = {term->rows, term->cols};
  HlrcTensor shape = {TEXT("shape"), 7, 1, dims, (const uint8_t *)sides, sizeof sides};
  HlrcTensor wrong = term->tensors[0];
  wrong.len = 3;
  REFUSED(host->onnx_tensor(context, NULL), null);
  REFUSED(host->onnx_tensor(context, &wrong), "takes 4 bytes, 3 are given");
  TRY(host->onnx_tensor(context, &term->tensors[0]));
  TRY(host->onnx_tensor(context, &shape));
  HlrcOnnxNode node = {.size = sizeof node, .op_type = TEXT("Expand"), .inputs = inputs, .input_count = 2,
                       .output = TEXT("matrix"), .attributes = TEXT("{}")}, bad = node;
  REFUSED(host->onnx_node(context, NULL), "the pointer is null");
  bad.size = 16;
  REFUSED(host->onnx_node(context, &bad), "a struct of 16 bytes");
  bad = node, bad.attributes = text("nothing");
  REFUSED(host->onnx_node(context, &bad), "attributes of Expand");
  bad = node, bad.inputs = NULL;
  REFUSED(host->onnx_node(context, &bad), null);
  bad = node, bad.output = not_utf8;
  REFUSED(host->onnx_node(context, &bad), "no UTF-8");
  TRY(host->onnx_node(context, &node));
  REFUSED(host->onnx_output(context, not_utf8, 13), "no UTF-8");
  return host->onnx_output(context, node.output, 13);
}

/* Four seconds of work. */
static HlrcStatus slow(HlrcUser pass, HlrcContext context) {
  (void)pass;
  for (uint64_t i = 0; i <= 40; i++) {
    TRY(host->progress(context, i, 40));
    if (host->cancelled(context) == HLRC_CANCELLED) return HLRC_CANCELLED;
    usleep(100000);
  }
  return HLRC_OK;
}

static const HlrcPassDef ask_def = {
    PASS("ask", "Calls what a module pass can call."),
    .create = remember,
    .run = run,
};
static const HlrcPassDef take_def = {
    PASS("take", "Calls what a peel can call."),
    .create = remember,
    .traits = drops_whole,
    .peel = peel,
};
static const HlrcPassDef slow_def = {
    PASS("slow", "Takes its time."),
    .create = create,
    .run = slow,
};
static const HlrcPassDef *const passes[] = {&ask_def, &take_def, &slow_def};
static const HlrcTermDef term_def = {
    KIND("even", "one value everywhere"),
    .add_rows = add_rows,
    .onnx = onnx,
};
static const HlrcTermDef *const terms[] = {&term_def};

PLUGIN("calls", 2, /* seed, op_site, moments */ TERMS)
