/* A plugin that a test builds in several ways, each wrong in another. HOW says which. */
#define _GNU_SOURCE
#include <unistd.h>

#include "frame.h"

#ifndef MAJOR
#define MAJOR HLRC_ABI_MAJOR
#endif
#ifndef MINOR
#define MINOR 0
#endif

static HlrcContext kept, outer;
static uint64_t zero_dims[2] = {8, 8};

static HlrcStatus make(const HlrcPassDef *def, HlrcContext context, HlrcStr options, HlrcUser *pass) {
  (void)def, (void)options;
  kept = context;
  while (HOW == 46) sleep(1);
  *pass = NULL;
  return HLRC_OK;
}

static void destroy(HlrcUser pass) {
  (void)pass;
  if (HOW == 45) exit(0);
}

static HlrcStatus traits(HlrcUser pass, HlrcContext context, HlrcMatrixTraits *traits) {
  (void)pass, (void)context;
  traits->access = HOW == 1 ? 77 : HLRC_ACCESS_WHOLE;
  traits->residual = HOW >= 40 ? HLRC_RESIDUAL_DROP : HLRC_RESIDUAL_KEEP;
  return HLRC_OK;
}

/* Fails with what the callback's seed is, and the first of its random numbers. */
static HlrcStatus tells(HlrcContext context, const char *what) {
  uint64_t seed = 0, first = 0;
  char said[96];
  host->seed(context, &seed);
  host->random(context, &first, 1);
  snprintf(said, sizeof said, "%s %016" PRIx64 " %016" PRIx64, what, seed, first);
  return says(context, said);
}

static HlrcStatus cost(HlrcUser pass, HlrcContext context, uint64_t rows, uint64_t cols, HlrcCost *cost) {
  (void)pass;
  if (HOW == 17) return says(context, "no idea");
  if (HOW == 18) cost->nanos = -1;
  if (HOW == 19) cost->nanos /= (double)(rows - rows);
  return cols == 0 ? HLRC_ERROR : HLRC_OK;
}

static HlrcStatus peel_stored(HlrcUser pass, HlrcContext context, const HlrcStored *stored, HlrcPeelStored *out) {
  (void)pass, (void)stored, (void)out;
  if (HOW == 40) return says(context, "stored rows are not to my taste");
  return HOW == 41 ? tells(context, "told") : HLRC_NONE;
}

static HlrcStatus peel(HlrcUser pass, HlrcContext context, HlrcPeel *peel) {
  (void)pass;
  HlrcTerm term = 0;
  HlrcStr kind = TEXT("dense"), none = TEXT("{}"), bad = {(const uint8_t *)"\xff\xfe", 2};
  HlrcTensor tensor = {TEXT("weight"), 1, 2, zero_dims, (const uint8_t *)peel->residual, 8 * 8 * 4};
  switch (HOW) {
  case 2: /* a term handle that was never given out */
    peel->term = 12345;
    return HLRC_OK;
  case 3: /* a context that never was */
    return host->term_new(999999999, kind, none, 8, 8, &tensor, 1, &term);
  case 4: /* a context whose callback has returned */
    return host->remark(kept, HLRC_REMARK_PASSED, none, none);
  case 5: /* fewer bytes than the shape takes */
    tensor.len = 4;
    return host->term_new(context, kind, none, 8, 8, &tensor, 1, &term);
  case 6: /* a null pointer to data */
    tensor.data = NULL;
    return host->term_new(context, kind, none, 8, 8, &tensor, 1, &term);
  case 7: /* text that is no UTF-8 */
    return host->remark(context, HLRC_REMARK_PASSED, none, bad);
  case 8: /* an op of a module, where there is none */
  {
    uint32_t count;
    return host->graph_count(context, &count);
  }
  case 9: /* an earlier term that is not there */
    return host->earlier_set(context, 3, 1);
  case 10: /* an error without a message */
    return 42;
  case 11: /* a kind of term that nobody defines */
  {
    HlrcStr unknown = TEXT("evil.unknown");
    return host->term_new(context, unknown, none, 8, 8, &tensor, 1, &term);
  }
  case 12: /* a kind of element that is none */
    tensor.dtype = 4000;
    return host->term_new(context, kind, none, 8, 8, &tensor, 1, &term);
  case 13: /* attributes that are no JSON */
    return host->term_new(context, kind, bad, 8, 8, &tensor, 1, &term);
  case 14: /* a rotation that does not fit */
    peel->rotation.out_block = 3, peel->rotation.in_block = 8;
    return HLRC_OK;
  case 15: /* a rotated term whose blocks do not fit */
  {
    static const uint8_t codes[8 * 4], scales[8 * 2];
    uint64_t code_dims[2] = {8, 4}, scale_dims[2] = {8, 1};
    HlrcStr quant = TEXT("quant");
    HlrcStr attributes = TEXT("{\"bits\":4,\"group\":\"row\",\"zeros\":false,\"rotation\":[9223372036854775808,8,0]}");
    HlrcTensor tensors[2] = {{TEXT("codes"), 2, 2, code_dims, codes, sizeof codes},
                             {TEXT("scales"), 10, 2, scale_dims, scales, sizeof scales}};
    return host->term_new(context, quant, attributes, 8, 8, tensors, 2, &term);
  }
  case 16: /* the kind's check, which the host calls from here, asks by this context */
  {
    HlrcStr own = TEXT("evil.own");
    outer = context;
    HlrcStatus status = host->term_new(context, own, none, 8, 8, &tensor, 1, &peel->term);
    for (int i = 0; i < 64; i++) peel->residual[i] = 0;
    return status;
  }
  case 42: /* what the seed is, as 41 of stored rows */
    return tells(context, "told");
  case 43: /* a wish of the user that there is not */
    return HLRC_CANCELLED;
  case 44: /* an error that says nothing */
    return says(context, " ");
  default:
    return HLRC_OK;
  }
}

static HlrcStatus check(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term) {
  (void)def, (void)term;
  if (context == outer) return HLRC_ERROR;
  return host->remark(outer, HLRC_REMARK_PASSED, text("x"), text("x")) == HLRC_OK ? HLRC_ERROR : HLRC_OK;
}

static HlrcStatus add_rows(const HlrcTermDef *def, HlrcContext context, const HlrcTermView *term,
                           uint64_t first_row, uint64_t rows, float *out) {
  (void)def, (void)context;
  for (uint64_t i = 0; i < rows * term->cols; i++) out[i] += entry(term, first_row * term->cols + i);
  return HLRC_OK;
}

static HlrcStatus run(HlrcUser pass, HlrcContext context) {
  (void)pass;
  HlrcOpRef at = {0, 0}, fresh = {0, 0}, nowhere = {7, 7};
  HlrcOpInfo info = {.size = sizeof info};
  uint32_t number = 0;
  switch (HOW) {
  case 20: /* an op that is not there */
    return host->op_info(context, nowhere, &info);
  case 21: /* a weight that is not there */
    return host->weight_drop(context, 12345);
  case 22: /* an input that means nothing */
  {
    HlrcOperand input = {HLRC_OPERAND_VALUE, 4321};
    if (host->op_copy(context, at, &fresh) != HLRC_OK) return HLRC_ERROR;
    return host->op_set_inputs(context, fresh, &input, 1);
  }
  case 23: /* a change of an op that is not its own */
    return host->op_clear_terms(context, at);
  case 24: /* text that is no module */
    return host->module_set_text(context, text("hlir 1 this is no module"));
  case 25: /* a module that breaks a rule: an op without inputs */
    if (host->op_copy(context, at, &fresh) != HLRC_OK) return HLRC_ERROR;
    if (host->op_set_inputs(context, fresh, NULL, 0) != HLRC_OK) return HLRC_ERROR;
    return host->op_replace(context, at, &fresh, 1);
  case 26: /* edits, then an error: nothing of them may count */
    if (host->op_replace(context, at, NULL, 0) != HLRC_OK) return HLRC_ERROR;
    return says(context, "changed my mind");
  case 27: /* well done: the op is copied, renamed and put back; a weight is read */
  {
    HlrcStr name = TEXT("renamed");
    HlrcTensor data;
    HlrcTerm term;
    HlrcTermView view = {.size = sizeof view};
    float rows[2 * 8];
    if (host->weight_count(context, &number) != HLRC_OK || number != 1) return HLRC_ERROR;
    if (host->weight_data(context, 0, &data) != HLRC_OK || data.rank != 2) return HLRC_ERROR;
    if (host->op_info(context, at, &info) != HLRC_OK || info.rows != 8) return HLRC_ERROR;
    if (host->op_term(context, at, 0, &term) != HLRC_OK) return HLRC_ERROR;
    if (host->term_view(context, term, &view) != HLRC_OK || view.cols != 8) return HLRC_ERROR;
    if (host->op_rows(context, at, 3, 2, rows) != HLRC_OK) return HLRC_ERROR;
    if (memcmp(rows, data.data + 3 * 8 * 4, sizeof rows) != 0) return HLRC_ERROR;
    if (host->op_rows(context, at, 7, 2, rows) != HLRC_INVALID) return HLRC_ERROR;
    if (host->op_copy(context, at, &fresh) != HLRC_OK) return HLRC_ERROR;
    if (host->op_set_name(context, fresh, name) != HLRC_OK) return HLRC_ERROR;
    return host->op_replace(context, at, &fresh, 1);
  }
  case 28: /* a bias that is no weight */
  {
    HlrcStr linear = TEXT("linear"), attributes = TEXT("{\"rows\":8,\"cols\":8,\"bias\":999}");
    if (host->op_info(context, at, &info) != HLRC_OK) return HLRC_ERROR;
    if (host->op_new(context, 0, linear, attributes, &fresh) != HLRC_OK) return HLRC_ERROR;
    if (host->op_set_inputs(context, fresh, info.inputs, 1) != HLRC_OK) return HLRC_ERROR;
    if (host->op_set_results(context, fresh, info.results, 1) != HLRC_OK) return HLRC_ERROR;
    return host->op_replace(context, at, &fresh, 1);
  }
  case 29: /* edits, a failure, and a status that denies it */
    if (host->op_replace(context, at, NULL, 0) != HLRC_OK) return HLRC_ERROR;
    return host->fail(context, text("it is not well"));
  default:
    return HLRC_OK;
  }
}

static const HlrcPassDef pass_def = {
    PASS("evil", "Does what it must not."),
    .create = make,
    .destroy = destroy,
    .traits = traits,
#if HOW >= 20 && HOW < 40
    .run = run,
#else
    .cost = cost,
    .peel = peel,
    .peel_stored = peel_stored,
#endif
};
static const HlrcPassDef *const passes[] = {&pass_def, &pass_def};

static const HlrcTermDef term_def = {
    KIND("own", "a copy"),
    .check = check,
    .add_rows = add_rows,
};
static const HlrcTermDef *const terms[] = {&term_def};

static const HlrcPlugin plugin = {
    .size = HOW == 30 ? 24 : sizeof(HlrcPlugin),
    .abi_major = MAJOR,
    .abi_minor = MINOR,
    .name = TEXT("evil"),
    .version = TEXT("1"),
    .passes = passes,
    .pass_count = HOW == 31 ? 2 : 1,
    .terms = terms,
    .term_count = 1,
};

const HlrcPlugin *hlrc_plugin(const HlrcHost *given) {
  host = given;
  (void)peel, (void)run, (void)cost, (void)peel_stored;
  if (HOW == 33) exit(0);
  while (HOW == 34) sleep(1);
  return HOW == 32 ? NULL : &plugin;
}
