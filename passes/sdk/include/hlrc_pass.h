/* The interface between hlrc-opt and its plugins, as C sees it. Made by cbindgen from passes/sdk/abi;
 * docs/plugins.md says how to use it.
 *
 * A plugin is a shared library with one exported symbol:
 *
 *   const HlrcPlugin *hlrc_plugin(const HlrcHost *host);
 */

#ifndef HLRC_PASS_H
#define HLRC_PASS_H

#include <stddef.h>
#include <stdint.h>

/*
 Major version: a plugin of another is refused.
 */
#define HLRC_ABI_MAJOR 1

/*
 Minor version: structs and functions that were added to the major version.
 */
#define HLRC_ABI_MINOR 2

/*
 `kind` of a remark: a pass did what it was asked.
 */
#define HLRC_REMARK_PASSED 0

/*
 `kind` of a remark: a pass did not, and says why.
 */
#define HLRC_REMARK_MISSED 1

/*
 `kind` of a remark: something worth knowing.
 */
#define HLRC_REMARK_ANALYSIS 2

/*
 `access`: a row's result depends on that row alone.
 */
#define HLRC_ACCESS_ROWS 0

/*
 `access`: the whole matrix.
 */
#define HLRC_ACCESS_WHOLE 1

/*
 `residual`: dropped where no later pass takes it up.
 */
#define HLRC_RESIDUAL_DROP 0

/*
 `residual`: dropped at once.
 */
#define HLRC_RESIDUAL_DROP_NOW 1

/*
 `residual`: stored as a dense term where no later pass takes it up.
 */
#define HLRC_RESIDUAL_KEEP 2

/*
 `calibration`: statistics are of no use.
 */
#define HLRC_CALIBRATION_UNUSED 0

/*
 `calibration`: better with statistics.
 */
#define HLRC_CALIBRATION_USED 1

/*
 `calibration`: not without statistics.
 */
#define HLRC_CALIBRATION_NEEDED 2

/*
 `group`: one scale per row.
 */
#define HLRC_GROUP_ROW 0

/*
 `group`: one scale per column.
 */
#define HLRC_GROUP_COLUMN UINT32_MAX

/*
 `method`: scales from the largest magnitude.
 */
#define HLRC_SCALE_ABSMAX 0

/*
 `method`: scales by least squared error.
 */
#define HLRC_SCALE_LSQ 1

/*
 `kind` of an operand: left out.
 */
#define HLRC_OPERAND_NONE 0

/*
 `kind` of an operand: a value of the op's graph.
 */
#define HLRC_OPERAND_VALUE 1

/*
 `kind` of an operand: a weight of the module.
 */
#define HLRC_OPERAND_WEIGHT 2

/*
 No value: a result that nobody asked for, a linear without bias.
 */
#define HLRC_NO_ID UINT32_MAX

/*
 What a function says of how it went; other numbers are errors too.
 */
typedef int32_t HlrcStatus;

/*
 Text: UTF-8, not terminated. `data` may be null where `len` is 0.
 */
typedef struct HlrcStr {
  /*
   First byte.
   */
  const uint8_t *data;
  /*
   Bytes.
   */
  size_t len;
} HlrcStr;

/*
 No more than a pointer that the plugin gave and gets back.
 */
typedef void *HlrcUser;

/*
 A callback's access to the host; it ends with the callback. Never reused.
 */
typedef uint64_t HlrcContext;

/*
 An integer quantizer.
 */
typedef struct HlrcQuantizer {
  /*
   Bits of a code.
   */
  uint32_t bits;
  /*
   1 where zero is the middle code, 0 where groups have zero points.
   */
  uint32_t symmetric;
  /*
   Neighbours along a row that share a scale, or `HLRC_GROUP_ROW`, `HLRC_GROUP_COLUMN`.
   */
  uint32_t group;
  /*
   `HLRC_SCALE_…`
   */
  uint32_t method;
  /*
   1 where errors make up for each other on the inputs that were seen.
   */
  uint32_t feedback;
} HlrcQuantizer;

/*
 What the manager asks of a matrix pass; of a module pass `calibration` alone, since 1.2.
 */
typedef struct HlrcMatrixTraits {
  /*
   `sizeof` this struct as the host knows it.
   */
  size_t size;
  /*
   `HLRC_ACCESS_…`
   */
  uint32_t access;
  /*
   `HLRC_RESIDUAL_…`
   */
  uint32_t residual;
  /*
   `HLRC_CALIBRATION_…`
   */
  uint32_t calibration;
  /*
   1 where it quantizes what it gets, in whatever way.
   */
  uint32_t quantizes;
  /*
   1 where it is the integer quantizer below.
   */
  uint32_t has_quantizer;
  /*
   The quantizer.
   */
  struct HlrcQuantizer quantizer;
} HlrcMatrixTraits;

/*
 What a pass takes for a matrix.
 */
typedef struct HlrcCost {
  /*
   `sizeof` this struct as the host knows it.
   */
  size_t size;
  /*
   Working memory, bytes, without the residual.
   */
  uint64_t workspace_bytes;
  /*
   Upper bound of the bytes of its term.
   */
  uint64_t term_bytes;
  /*
   Time on one core, nanoseconds, roughly.
   */
  double nanos;
} HlrcCost;

/*
 Second moments of what goes into a matrix, on some text.
 */
typedef struct HlrcMoments {
  /*
   `sizeof` this struct as the host knows it.
   */
  size_t size;
  /*
   How many tokens were seen.
   */
  uint64_t tokens;
  /*
   Number of inputs.
   */
  uint64_t width;
  /*
   Σ x², `[width]`
   */
  const float *diagonal;
  /*
   Σ x xᵀ, `[width, width]`; null where only the diagonal is known.
   */
  const float *hessian;
} HlrcMoments;

/*
 A block Hadamard rotation on both sides of a matrix.
 */
typedef struct HlrcRotation {
  /*
   Size of the blocks along the rows' side; 0: there is no rotation.
   */
  uint64_t out_block;
  /*
   Size of the blocks along the columns' side.
   */
  uint64_t in_block;
  /*
   Where the signs come from.
   */
  uint64_t seed;
} HlrcRotation;

/*
 A term in a context; 0 is none.
 */
typedef uint64_t HlrcTerm;

/*
 A matrix, or some of its rows, in the hands of a pass.
 */
typedef struct HlrcPeel {
  /*
   `sizeof` this struct as the host knows it.
   */
  size_t size;
  /*
   The site's name, for remarks.
   */
  struct HlrcStr site;
  /*
   Rows at hand: all of them for `HLRC_ACCESS_WHOLE`.
   */
  uint64_t rows;
  /*
   Columns.
   */
  uint64_t cols;
  /*
   `[rows, cols]`, row-major: what earlier passes left; changed in place.
   */
  float *residual;
  /*
   Seed of this site and pass.
   */
  uint64_t seed;
  /*
   Seed of rotations: of the run.
   */
  uint64_t rotation_seed;
  /*
   The quantizer that comes later for this site; null where none does.
   */
  const struct HlrcQuantizer *next;
  /*
   Moments of the site's input; null where there are none.
   */
  const struct HlrcMoments *moments;
  /*
   Terms that passes before this one have made of the matrix; see `earlier`.
   */
  size_t earlier_count;
  /*
   1 where a quantizer of any kind comes later for this site.
   */
  uint32_t quantized_later;
  /*
   Keeps what follows aligned.
   */
  uint32_t reserved;
  /*
   The coordinates of `residual`; a pass that rotates it says so here.
   */
  struct HlrcRotation rotation;
  /*
   Out: the term, made with `term_new`; 0 where nothing was worth taking.
   */
  HlrcTerm term;
} HlrcPeel;

/*
 Rows of a stored matrix, as they are in the file.
 */
typedef struct HlrcStored {
  /*
   `sizeof` this struct as the host knows it.
   */
  size_t size;
  /*
   Element type, ONNX's number: f32, f16 or bf16.
   */
  uint32_t dtype;
  /*
   Keeps what follows aligned.
   */
  uint32_t reserved;
  /*
   `[rows, cols]`, little-endian, no alignment.
   */
  const uint8_t *data;
  /*
   Bytes.
   */
  size_t len;
  /*
   Rows at hand.
   */
  uint64_t rows;
  /*
   Columns.
   */
  uint64_t cols;
} HlrcStored;

/*
 What a pass took out of stored rows.
 */
typedef struct HlrcPeelStored {
  /*
   `sizeof` this struct as the host knows it.
   */
  size_t size;
  /*
   Out: the term.
   */
  HlrcTerm term;
  /*
   Out: Σ w² over the rows.
   */
  double weight_squares;
  /*
   Out: Σ (w − term)² over the rows.
   */
  double residual_squares;
} HlrcPeelStored;

/*
 A pass. Matrix passes have `traits`, `cost` and `peel`; module passes have `run`.
 */
typedef struct HlrcPassDef {
  /*
   `sizeof` this struct as the plugin knows it.
   */
  size_t size;
  /*
   Name in pipelines: small letters, digits and `-`.
   */
  struct HlrcStr name;
  /*
   One line: what it does.
   */
  struct HlrcStr summary;
  /*
   What it does and why, before and after, cost, source.
   */
  struct HlrcStr doc;
  /*
   JSON Schema of the options: an object whose properties have `type`, `default`, `description`.
   */
  struct HlrcStr schema;
  /*
   The plugin's own.
   */
  HlrcUser user;
  /*
   Makes a pass from its options, a JSON object that fits the schema; hosts of 1.2 and later give the
   schema's defaults for what the user left out.
   */
  HlrcStatus (*create)(const struct HlrcPassDef *def,
                       HlrcContext context,
                       struct HlrcStr options,
                       HlrcUser *pass);
  /*
   Takes a pass back; may be null.
   */
  void (*destroy)(HlrcUser pass);
  /*
   What the manager asks of a matrix pass. Since 1.2 of a module pass too, which may leave it null.
   */
  HlrcStatus (*traits)(HlrcUser pass, HlrcContext context, struct HlrcMatrixTraits *traits);
  /*
   Memory, time and bytes for a matrix `[rows, cols]`, asked for before any is read; may be null, or return
   `HLRC_NONE`: as much as the matrix in f32. An error ends the run.
   */
  HlrcStatus (*cost)(HlrcUser pass, HlrcContext context, uint64_t rows, uint64_t cols, struct HlrcCost *cost);
  /*
   Takes a term out of a matrix: behind it `residual` is what it was minus the term as stored.
   */
  HlrcStatus (*peel)(HlrcUser pass, HlrcContext context, struct HlrcPeel *peel);
  /*
   The same from stored rows where nobody needs the residual; may be null. `HLRC_NONE`: use `peel`.
   Notes and remarks are not kept.
   */
  HlrcStatus (*peel_stored)(HlrcUser pass,
                            HlrcContext context,
                            const struct HlrcStored *stored,
                            struct HlrcPeelStored *peeled);
  /*
   Rewrites the module. Its edits count only where it returns `HLRC_OK` and the module verifies.
   */
  HlrcStatus (*run)(HlrcUser pass, HlrcContext context);
} HlrcPassDef;

/*
 A tensor and its elements: row-major, little-endian, packed, low bits first below a byte.
 */
typedef struct HlrcTensor {
  /*
   Its name in what it is part of.
   */
  struct HlrcStr name;
  /*
   Element type, ONNX's number.
   */
  uint32_t dtype;
  /*
   Number of dimensions.
   */
  uint32_t rank;
  /*
   The dimensions.
   */
  const uint64_t *dims;
  /*
   First byte; no alignment is promised.
   */
  const uint8_t *data;
  /*
   Bytes.
   */
  size_t len;
} HlrcTensor;

/*
 A term `[rows, cols]` of a matrix.
 */
typedef struct HlrcTermView {
  /*
   `sizeof` this struct as its filler knows it.
   */
  size_t size;
  /*
   `dense`, `quant`, `trellis`, `low_rank`, `sparse`, `columns`, or `plugin.kind`.
   */
  struct HlrcStr kind;
  /*
   Rows at hand.
   */
  uint64_t rows;
  /*
   Columns.
   */
  uint64_t cols;
  /*
   Constants of the kind: a JSON object.
   */
  struct HlrcStr attributes;
  /*
   Its tensors, in the kind's order.
   */
  const struct HlrcTensor *tensors;
  /*
   How many.
   */
  size_t tensor_count;
} HlrcTermView;

/*
 A kind of term.
 */
typedef struct HlrcTermDef {
  /*
   `sizeof` this struct as the plugin knows it.
   */
  size_t size;
  /*
   Its name: letters, digits and `_`. Its full name has the plugin's and a dot in front.
   */
  struct HlrcStr name;
  /*
   One line: what such a term is.
   */
  struct HlrcStr summary;
  /*
   The plugin's own.
   */
  HlrcUser user;
  /*
   Whether tensors and attributes fit each other: called before all else, may be null.
   */
  HlrcStatus (*check)(const struct HlrcTermDef *def, HlrcContext context, const struct HlrcTermView *term);
  /*
   Adds rows of the matrix to `out` `[rows, cols]`.
   */
  HlrcStatus (*add_rows)(const struct HlrcTermDef *def,
                         HlrcContext context,
                         const struct HlrcTermView *term,
                         uint64_t first_row,
                         uint64_t rows,
                         float *out);
  /*
   Writes `x Wᵀ` for rows of W to `out` `[tokens, rows]`, `x` being `[tokens, cols]`; may be null: rows
   are decoded.
   */
  HlrcStatus (*multiply)(const struct HlrcTermDef *def,
                         HlrcContext context,
                         const struct HlrcTermView *term,
                         uint64_t first_row,
                         uint64_t rows,
                         const float *x,
                         uint64_t tokens,
                         float *out);
  /*
   Gives ONNX nodes that compute the matrix, with the host's `onnx_…`; may be null, or return
   `HLRC_NONE`: the term is exported dense.
   */
  HlrcStatus (*onnx)(const struct HlrcTermDef *def, HlrcContext context, const struct HlrcTermView *term);
  /*
   Since 1.1. The backward rule: from the gradient of the matrix, `dw` `[rows, cols]`, the gradient of
   each tensor; `gradients[i]` has room for as many f32 as tensor i has elements, and zeros in it. May be
   null, or return `HLRC_NONE`: the term is a constant.
   */
  HlrcStatus (*backward)(const struct HlrcTermDef *def,
                         HlrcContext context,
                         const struct HlrcTermView *term,
                         const float *dw,
                         float *const *gradients);
} HlrcTermDef;

/*
 A plugin. All that it points to lives as long as the process.
 */
typedef struct HlrcPlugin {
  /*
   `sizeof` this struct as the plugin knows it.
   */
  size_t size;
  /*
   `HLRC_ABI_MAJOR` as the plugin knows it.
   */
  uint32_t abi_major;
  /*
   The least minor version of the host that the plugin needs.
   */
  uint32_t abi_minor;
  /*
   Its name: letters, digits, `_` and `-`.
   */
  struct HlrcStr name;
  /*
   Its version, for people.
   */
  struct HlrcStr version;
  /*
   Its passes.
   */
  const struct HlrcPassDef *const *passes;
  /*
   How many.
   */
  size_t pass_count;
  /*
   Its kinds of terms.
   */
  const struct HlrcTermDef *const *terms;
  /*
   How many.
   */
  size_t term_count;
} HlrcPlugin;

/*
 A term of an earlier pass.
 */
typedef struct HlrcEarlier {
  /*
   `sizeof` this struct as its caller knows it.
   */
  size_t size;
  /*
   The term; `term_view` reads it.
   */
  HlrcTerm term;
  /*
   What its pass is, as the manager sees it.
   */
  struct HlrcMatrixTraits traits;
} HlrcEarlier;

/*
 An operand of an op.
 */
typedef struct HlrcOperand {
  /*
   `HLRC_OPERAND_…`
   */
  uint32_t kind;
  /*
   The value's or weight's number.
   */
  uint32_t id;
} HlrcOperand;

/*
 A graph.
 */
typedef struct HlrcGraphInfo {
  /*
   `sizeof` this struct as its caller knows it.
   */
  size_t size;
  /*
   Its name.
   */
  struct HlrcStr name;
  /*
   Its ops in order, those of regions behind the op that holds them.
   */
  const uint32_t *ops;
  /*
   How many.
   */
  size_t op_count;
  /*
   Values that it takes.
   */
  const uint32_t *inputs;
  /*
   How many.
   */
  size_t input_count;
  /*
   What it gives.
   */
  const struct HlrcOperand *outputs;
  /*
   How many.
   */
  size_t output_count;
} HlrcGraphInfo;

/*
 An op: a graph's number and the op's number in it. Ops that `op_new` and `op_copy` make have numbers of
 their own until an edit puts them somewhere.
 */
typedef struct HlrcOpRef {
  /*
   The graph.
   */
  uint32_t graph;
  /*
   The op.
   */
  uint32_t op;
} HlrcOpRef;

/*
 An op.
 */
typedef struct HlrcOpInfo {
  /*
   `sizeof` this struct as its caller knows it.
   */
  size_t size;
  /*
   `linear`, `embedding`, `moe`, a native op's name, or `onnx.Name`.
   */
  struct HlrcStr kind;
  /*
   Its name in the source; may be empty.
   */
  struct HlrcStr name;
  /*
   Its constants: a JSON object; a tensor is `{"weight": number}`.
   */
  struct HlrcStr attributes;
  /*
   What it reads.
   */
  const struct HlrcOperand *inputs;
  /*
   How many.
   */
  size_t input_count;
  /*
   Values that it makes; `HLRC_NO_ID` where nobody asked for one.
   */
  const uint32_t *results;
  /*
   How many.
   */
  size_t result_count;
  /*
   Rows of its matrix; 0 where it has none.
   */
  uint64_t rows;
  /*
   Columns of its matrix.
   */
  uint64_t cols;
  /*
   Terms of its matrix; see `op_term`.
   */
  size_t term_count;
  /*
   Weight of its bias, or `HLRC_NO_ID`.
   */
  uint32_t bias;
} HlrcOpInfo;

/*
 A value.
 */
typedef struct HlrcValueInfo {
  /*
   `sizeof` this struct as its caller knows it.
   */
  size_t size;
  /*
   Its name; may be empty.
   */
  struct HlrcStr name;
  /*
   Its type as text has it, `f32[B,S,576]`; empty where it is not known.
   */
  struct HlrcStr ty;
} HlrcValueInfo;

/*
 A weight.
 */
typedef struct HlrcWeightInfo {
  /*
   `sizeof` this struct as its caller knows it.
   */
  size_t size;
  /*
   Its name.
   */
  struct HlrcStr name;
  /*
   Element type, ONNX's number.
   */
  uint32_t dtype;
  /*
   Number of dimensions.
   */
  uint32_t rank;
  /*
   The dimensions.
   */
  const uint64_t *dims;
  /*
   Bytes.
   */
  uint64_t bytes;
} HlrcWeightInfo;

/*
 A node of the ONNX form of a term: one operator of the standard domain with one output.
 */
typedef struct HlrcOnnxNode {
  /*
   `sizeof` this struct as the plugin knows it.
   */
  size_t size;
  /*
   The operator.
   */
  struct HlrcStr op_type;
  /*
   Names of constants, or of outputs of nodes before it.
   */
  const struct HlrcStr *inputs;
  /*
   How many.
   */
  size_t input_count;
  /*
   Name of its output.
   */
  struct HlrcStr output;
  /*
   Attributes: a JSON object of integers, floats, strings and lists of integers.
   */
  struct HlrcStr attributes;
} HlrcOnnxNode;

/*
 The host's functions. Each refuses handles and numbers that mean nothing with a status; none ends the
 process.
 */
typedef struct HlrcHost {
  /*
   `sizeof` this struct as the host knows it.
   */
  size_t size;
  /*
   `HLRC_ABI_MAJOR` as the host knows it.
   */
  uint32_t abi_major;
  /*
   `HLRC_ABI_MINOR` as the host knows it.
   */
  uint32_t abi_minor;
  /*
   The host's version, for people.
   */
  struct HlrcStr version;
  /*
   Says why the callback fails. The last word counts; a callback that returns `HLRC_OK` behind it has failed
   all the same.
   */
  HlrcStatus (*fail)(HlrcContext context, struct HlrcStr message);
  /*
   Why the last call of this context was refused.
   */
  HlrcStatus (*last_error)(HlrcContext context, struct HlrcStr *message);
  /*
   A remark about a site; an empty `site` is the one at hand.
   */
  HlrcStatus (*remark)(HlrcContext context, uint32_t kind, struct HlrcStr site, struct HlrcStr message);
  /*
   How much of a long work is done.
   */
  HlrcStatus (*progress)(HlrcContext context, uint64_t done, uint64_t total);
  /*
   `HLRC_CANCELLED` once the user asked to stop: the callback should return it soon.
   */
  HlrcStatus (*cancelled)(HlrcContext context);
  /*
   Uniform random numbers, the same in every run with the same seed; `seed` says which that is.
   */
  HlrcStatus (*random)(HlrcContext context, uint64_t *out, size_t count);
  /*
   Makes a term `[rows, cols]`; tensors are copied and checked. `kind` is a built-in kind's name or
   `plugin.kind`; `attributes` is the kind's JSON object.
   */
  HlrcStatus (*term_new)(HlrcContext context,
                         struct HlrcStr kind,
                         struct HlrcStr attributes,
                         uint64_t rows,
                         uint64_t cols,
                         const struct HlrcTensor *tensors,
                         size_t tensor_count,
                         HlrcTerm *term);
  /*
   Structure and tensors of a term.
   */
  HlrcStatus (*term_view)(HlrcContext context, HlrcTerm term, struct HlrcTermView *view);
  /*
   Adds decoded rows of a term to `out` `[rows, cols]`.
   */
  HlrcStatus (*term_add_rows)(HlrcContext context,
                              HlrcTerm term,
                              uint64_t first_row,
                              uint64_t rows,
                              float *out);
  /*
   Short text for progress lines, of the term that a peel makes: `r64`.
   */
  HlrcStatus (*note)(HlrcContext context, struct HlrcStr note);
  /*
   A term of an earlier pass.
   */
  HlrcStatus (*earlier)(HlrcContext context, size_t index, struct HlrcEarlier *earlier);
  /*
   Puts another term in an earlier one's place; the sum of terms and residual must stay what it was.
   */
  HlrcStatus (*earlier_set)(HlrcContext context, size_t index, HlrcTerm term);
  /*
   The module as text IR.
   */
  HlrcStatus (*module_text)(HlrcContext context, struct HlrcStr *text);
  /*
   Puts another module in its place; counts alone, not with other edits.
   */
  HlrcStatus (*module_set_text)(HlrcContext context, struct HlrcStr text);
  /*
   Number of graphs.
   */
  HlrcStatus (*graph_count)(HlrcContext context, uint32_t *count);
  /*
   A graph.
   */
  HlrcStatus (*graph_info)(HlrcContext context, uint32_t graph, struct HlrcGraphInfo *info);
  /*
   An op.
   */
  HlrcStatus (*op_info)(HlrcContext context, struct HlrcOpRef op, struct HlrcOpInfo *info);
  /*
   A term of an op's matrix.
   */
  HlrcStatus (*op_term)(HlrcContext context, struct HlrcOpRef op, size_t index, HlrcTerm *term);
  /*
   Decoded rows of an op's matrix, the sum of its terms, to `out` `[rows, cols]`.
   */
  HlrcStatus (*op_rows)(HlrcContext context,
                        struct HlrcOpRef op,
                        uint64_t first_row,
                        uint64_t rows,
                        float *out);
  /*
   A value of a graph.
   */
  HlrcStatus (*value_info)(HlrcContext context, uint32_t graph, uint32_t value, struct HlrcValueInfo *info);
  /*
   Number of weights.
   */
  HlrcStatus (*weight_count)(HlrcContext context, uint32_t *count);
  /*
   A weight.
   */
  HlrcStatus (*weight_info)(HlrcContext context, uint32_t weight, struct HlrcWeightInfo *info);
  /*
   A weight's elements as they are stored, mapped and not copied.
   */
  HlrcStatus (*weight_data)(HlrcContext context, uint32_t weight, struct HlrcTensor *tensor);
  /*
   Adds a weight; its number is valid in this context at once.
   */
  HlrcStatus (*weight_new)(HlrcContext context, const struct HlrcTensor *tensor, uint32_t *weight);
  /*
   Takes a weight out, unless something refers to it in the end.
   */
  HlrcStatus (*weight_drop)(HlrcContext context, uint32_t weight);
  /*
   Adds a value to a graph; `ty` as text has it, or empty.
   */
  HlrcStatus (*value_new)(HlrcContext context,
                          uint32_t graph,
                          struct HlrcStr name,
                          struct HlrcStr ty,
                          uint32_t *value);
  /*
   Makes an op. `kind` as `op_info` gives it; `attributes` its JSON object, which for `linear` and
   `embedding` has `rows` and `cols` (and `bias`, a weight's number). Ops with graphs of
   their own (`moe`, ONNX's `If`) can be copied, not made.
   */
  HlrcStatus (*op_new)(HlrcContext context,
                       uint32_t graph,
                       struct HlrcStr kind,
                       struct HlrcStr attributes,
                       struct HlrcOpRef *op);
  /*
   Makes a copy of an op, to be changed and put somewhere.
   */
  HlrcStatus (*op_copy)(HlrcContext context, struct HlrcOpRef of, struct HlrcOpRef *op);
  /*
   Names a new op.
   */
  HlrcStatus (*op_set_name)(HlrcContext context, struct HlrcOpRef op, struct HlrcStr name);
  /*
   What a new op reads.
   */
  HlrcStatus (*op_set_inputs)(HlrcContext context,
                              struct HlrcOpRef op,
                              const struct HlrcOperand *inputs,
                              size_t count);
  /*
   What a new op makes.
   */
  HlrcStatus (*op_set_results)(HlrcContext context, struct HlrcOpRef op, const uint32_t *results, size_t count);
  /*
   Takes all terms of a new op's matrix out.
   */
  HlrcStatus (*op_clear_terms)(HlrcContext context, struct HlrcOpRef op);
  /*
   Adds a term to a new op's matrix: its kind, constants, and weights by number in the kind's order.
   `names` are the tensors' names, of terms of plugins' kinds; else null.
   */
  HlrcStatus (*op_add_term)(HlrcContext context,
                            struct HlrcOpRef op,
                            struct HlrcStr kind,
                            struct HlrcStr attributes,
                            const struct HlrcStr *names,
                            const uint32_t *weights,
                            size_t count);
  /*
   Puts new ops where an op of the module stands; none removes it. Naming the op itself keeps it.
   */
  HlrcStatus (*op_replace)(HlrcContext context, struct HlrcOpRef at, const struct HlrcOpRef *ops, size_t count);
  /*
   What a graph takes and gives.
   */
  HlrcStatus (*graph_set_ports)(HlrcContext context,
                                uint32_t graph,
                                const uint32_t *inputs,
                                size_t input_count,
                                const struct HlrcOperand *outputs,
                                size_t output_count);
  /*
   Adds a constant to the ONNX form of a term.
   */
  HlrcStatus (*onnx_tensor)(HlrcContext context, const struct HlrcTensor *tensor);
  /*
   Adds a node to it.
   */
  HlrcStatus (*onnx_node)(HlrcContext context, const struct HlrcOnnxNode *node);
  /*
   Says which value is the matrix `[rows, cols]` in f32, and the least opset that has the nodes.
   */
  HlrcStatus (*onnx_output)(HlrcContext context, struct HlrcStr name, uint64_t opset);
  /*
   Since 1.1. Gives a term's memory back before the context ends, with what `term_view` lent of it; its
   handle means nothing then.
   */
  HlrcStatus (*term_drop)(HlrcContext context, HlrcTerm term);
  /*
   Since 1.2. The seed that the callback's random numbers come from: of the run (`--seed`) in `create`,
   `traits`, `cost` and `run`; of run, site and pass in `peel` and `peel_stored`; of a term's kind and
   attributes in callbacks of kinds, since a term is the same matrix in every run.
   */
  HlrcStatus (*seed)(HlrcContext context, uint64_t *seed);
  /*
   Since 1.2. Name of the site that an op with a matrix is a user of, as reports, scopes and statistics
   have it; `HLRC_NONE` where it has none.
   */
  HlrcStatus (*op_site)(HlrcContext context, struct HlrcOpRef op, struct HlrcStr *site);
  /*
   Since 1.2. In a module pass: second moments of what goes into a site's matrix. They live until the
   next call. `HLRC_NONE` where there are none of it: without `--calib`, and in a dry run.
   */
  HlrcStatus (*moments)(HlrcContext context, struct HlrcStr site, struct HlrcMoments *moments);
} HlrcHost;

/*
 All went well.
 */
#define HLRC_OK 0

/*
 It failed; the message was given with `fail`, or `last_error` has it.
 */
#define HLRC_ERROR 1

/*
 A panic or exception was caught before the border; as `HLRC_ERROR` else.
 */
#define HLRC_PANIC 2

/*
 A handle, number or pointer that means nothing; `last_error` says which.
 */
#define HLRC_INVALID 3

/*
 The context's callback has returned: nothing of it can be used any more.
 */
#define HLRC_EXPIRED 4

/*
 There is no such thing, and that is no error.
 */
#define HLRC_NONE 5

/*
 The user asked the run to stop.
 */
#define HLRC_CANCELLED 6

#endif  /* HLRC_PASS_H */

#ifdef __cplusplus
extern "C"
#endif
#if defined(_WIN32)
__declspec(dllexport)
#elif defined(__GNUC__)
__attribute__((visibility("default")))
#endif
/* The plugin defines this. */
const HlrcPlugin *hlrc_plugin(const HlrcHost *host);
