/* A plugin between the host and another one, INNER: shows each the other's tables as version 1.0 has them, at
 * the end of a page behind which nothing may be read. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hlrc_pass.h"

/* A copy of the first `size` bytes of a struct that begins with its size, which is set to it. */
static void *cut(const void *whole, size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (size + page - 1) / page * page;
  char *place = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED || mprotect(place + room, page, PROT_NONE) != 0) abort();
  char *copy = place + room - size;
  memcpy(copy, whole, size);
  memcpy(copy, &size, sizeof size);
  return copy;
}

#define UP_TO(kind, field) (offsetof(kind, field) + sizeof(((kind *)0)->field))

const HlrcPlugin *hlrc_plugin(const HlrcHost *given) {
  HlrcHost *host = cut(given, UP_TO(HlrcHost, onnx_output));
  host->abi_minor = 0;
  void *library = dlopen(getenv("INNER"), RTLD_NOW | RTLD_LOCAL);
  const HlrcPlugin *(*entry)(const HlrcHost *) = NULL;
  if (library) *(void **)&entry = dlsym(library, "hlrc_plugin");
  const HlrcPlugin *inner = entry ? entry(host) : NULL;
  if (!inner) return NULL;
  HlrcPlugin *plugin = cut(inner, UP_TO(HlrcPlugin, term_count));
  const HlrcPassDef **passes = calloc(plugin->pass_count + 1, sizeof *passes);
  for (size_t i = 0; i < plugin->pass_count; i++) passes[i] = cut(inner->passes[i], UP_TO(HlrcPassDef, run));
  const HlrcTermDef **terms = calloc(plugin->term_count + 1, sizeof *terms);
  for (size_t i = 0; i < plugin->term_count; i++) terms[i] = cut(inner->terms[i], UP_TO(HlrcTermDef, onnx));
  plugin->passes = passes, plugin->terms = terms;
  return plugin;
}
