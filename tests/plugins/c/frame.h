/* What the plugins of the tests have in common: texts, a way to say what went wrong, a pass without options,
 * the description and the entry. A plugin uses what it needs of it. */
#ifndef FRAME_H
#define FRAME_H

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hlrc_pass.h"

#ifndef HOW
#define HOW 0
#endif

#define COUNT(list) (sizeof(list) / sizeof *(list))
#define TEXT(literal) {(const uint8_t *)(literal), sizeof(literal) - 1}

static const HlrcHost *host;

static inline HlrcStr text(const char *data) {
  HlrcStr made = {(const uint8_t *)data, strlen(data)};
  return made;
}

static inline int is(HlrcStr given, const char *expected) {
  return given.len == strlen(expected) && memcmp(given.data, expected, given.len) == 0;
}

/* Fails with a text. */
static inline HlrcStatus says(HlrcContext context, const char *said) {
  host->fail(context, text(said));
  return HLRC_ERROR;
}

/* Fails with a call, its status, and why the host refused it. */
static inline HlrcStatus fails(HlrcContext context, const char *what, HlrcStatus status) {
  char said[512];
  HlrcStr why = TEXT("");
  host->last_error(context, &why);
  snprintf(said, sizeof said, "%s: status %d: %.*s", what, status, (int)why.len, (const char *)why.data);
  return says(context, said);
}

/* Ends the callback where a call is refused, or where something does not hold. */
#define TRY(call) \
  do { \
    HlrcStatus status = (call); \
    if (status != HLRC_OK) return fails(context, #call, status); \
  } while (0)
#define EXPECT(what) \
  if (!(what)) return fails(context, #what, HLRC_OK)

/* A pass that remembers nothing. */
static inline HlrcStatus create(const HlrcPassDef *def, HlrcContext context, HlrcStr options, HlrcUser *pass) {
  (void)def, (void)context, (void)options;
  *pass = NULL;
  return HLRC_OK;
}

/* A matrix pass that drops what is left; ROWS or WHOLE. */
static inline HlrcStatus drops_rows(HlrcUser pass, HlrcContext context, HlrcMatrixTraits *traits) {
  (void)pass, (void)context;
  traits->access = HLRC_ACCESS_ROWS;
  traits->residual = HLRC_RESIDUAL_DROP;
  return HLRC_OK;
}
static inline HlrcStatus drops_whole(HlrcUser pass, HlrcContext context, HlrcMatrixTraits *traits) {
  (void)pass, (void)context;
  traits->access = HLRC_ACCESS_WHOLE;
  traits->residual = HLRC_RESIDUAL_DROP;
  return HLRC_OK;
}

/* A term of one tensor of f32 of the matrix's shape. */
static inline HlrcStatus term_of(HlrcContext context, const char *kind, const char *tensor, uint64_t rows,
                                 uint64_t cols, const float *values, HlrcTerm *term) {
  uint64_t dims[2] = {rows, cols};
  HlrcTensor given = {text(tensor), 1, 2, dims, (const uint8_t *)values, rows * cols * sizeof *values};
  return host->term_new(context, text(kind), text(""), rows, cols, &given, 1, term);
}

/* An entry of a term's first tensor, f32. */
static inline float entry(const HlrcTermView *term, uint64_t at) {
  float value;
  memcpy(&value, term->tensors[0].data + at * sizeof value, sizeof value);
  return value;
}

/* Fields of a definition: names, and no options. */
#define PASS(word, what) .size = sizeof(HlrcPassDef), .name = TEXT(word), .summary = TEXT(what), .schema = TEXT("")
#define KIND(word, what) .size = sizeof(HlrcTermDef), .name = TEXT(word), .summary = TEXT(what)

/* The description and the entry, of a plugin of the present major version with a list `passes`; what follows
 * are more of its fields. */
#define PLUGIN(word, minor, ...) \
  static const HlrcPlugin plugin = {.size = sizeof(HlrcPlugin), \
                                    .abi_major = HLRC_ABI_MAJOR, \
                                    .abi_minor = minor, \
                                    .name = TEXT(word), \
                                    .version = TEXT("1"), \
                                    .passes = passes, \
                                    .pass_count = COUNT(passes), \
                                    __VA_ARGS__}; \
  const HlrcPlugin *hlrc_plugin(const HlrcHost *given) { \
    host = given; \
    return &plugin; \
  }
#define TERMS .terms = terms, .term_count = COUNT(terms)
#define NO_TERMS .terms = NULL

#endif
