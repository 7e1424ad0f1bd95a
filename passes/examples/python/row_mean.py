"""A plugin in Python: takes the mean of each row out of a matrix, as a term of rank 1.

    python row_mean.py DIR

compiles it, with cffi and the C header alone, to DIR/librow_mean.so; the interpreter runs inside hlrc-opt then,
with the packages of the one that compiled it. The header lies beside this file, or in hlrc-opt's sources.

Before: `linear %x { dense(@w) }`
After:  `linear %x { low_rank(@w.u, @w.v, r=1) }`
"""

import pathlib
import re
import subprocess
import sys
import sysconfig

import cffi

HERE = pathlib.Path(__file__).resolve().parent
HEADERS = [HERE / "hlrc_pass.h", HERE / "../../sdk/include/hlrc_pass.h"]

# What runs inside: numpy is not needed, the matrix is read and written where it lies.
CODE = '''
import json
from row_mean import ffi

KEEP = []  # what C points to must live as long as the process
HOST = None


def text(value):
    data = ffi.new("uint8_t[]", value.encode())
    KEEP.append(data)
    return {"data": data, "len": len(value.encode())}


@ffi.def_extern()
def row_mean_create(definition, context, options, out):
    out[0] = ffi.NULL
    return 0


@ffi.def_extern()
def row_mean_traits(instance, context, traits):
    traits.access, traits.residual = 1, 0  # the whole matrix; the rest is dropped where none takes it up
    return 0


@ffi.def_extern(error=2)
def row_mean_peel(instance, context, peel):
    rows, cols = peel.rows, peel.cols
    u, v = ffi.new("float[]", rows), ffi.new("float[]", [1.0] * cols)
    for r in range(rows):
        row = peel.residual + r * cols
        u[r] = sum(row[0:cols]) / cols
        for c in range(cols):
            row[c] -= u[r]
    names = [ffi.new("uint8_t[]", b"u"), ffi.new("uint8_t[]", b"v")]
    dims = [ffi.new("uint64_t[]", [rows, 1]), ffi.new("uint64_t[]", [1, cols])]
    tensors = ffi.new("HlrcTensor[2]")
    for tensor, name, shape, values, count in zip(tensors, names, dims, (u, v), (rows, cols)):
        tensor.name.data, tensor.name.len = name, 1
        tensor.dtype, tensor.rank, tensor.dims = 1, 2, shape
        tensor.data, tensor.len = ffi.cast("uint8_t *", values), 4 * count
    spec = json.dumps({"blocks": [[0, rows, 0, cols, 1]], "format": "f32"}).encode()
    kind = ffi.new("uint8_t[]", b"low_rank")
    spec_bytes = ffi.new("uint8_t[]", spec)
    term = ffi.new("HlrcTerm *")
    status = HOST.term_new(context, {"data": kind, "len": 8}, {"data": spec_bytes, "len": len(spec)},
                           rows, cols, tensors, 2, term)
    peel.term = term[0]
    return status


@ffi.def_extern()
def hlrc_plugin(host):
    global HOST
    HOST = host
    definition = ffi.new("HlrcPassDef *")
    definition.size = ffi.sizeof("HlrcPassDef")
    definition.name = text("row-mean")
    definition.summary = text("Takes the mean of each row out.")
    definition.doc = text("Takes the mean of each row out, as a term of rank 1.")
    definition.schema = text("")
    lib = __import__("row_mean").lib
    definition.create, definition.traits, definition.peel = (
        lib.row_mean_create, lib.row_mean_traits, lib.row_mean_peel)
    passes = ffi.new("HlrcPassDef *[1]", [definition])
    plugin = ffi.new("HlrcPlugin *")
    plugin.size = ffi.sizeof("HlrcPlugin")
    plugin.abi_major, plugin.abi_minor = 1, 0
    plugin.name, plugin.version = text("row-mean"), text("0.1.0")
    plugin.passes, plugin.pass_count = passes, 1
    KEEP.extend([definition, passes, plugin])
    return plugin
'''

# The interpreter finds cffi where this one does. Modules in C that it loads look for it among global symbols;
# hlrc-opt loads plugins as local ones.
SOURCE = """
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include "hlrc_pass.h"

__attribute__((constructor)) static void prepare(void) {
  const char *others = getenv("PYTHONPATH");
  char path[8192];
  snprintf(path, sizeof path, "%%s%%s%%s", "%s", others ? ":" : "", others ? others : "");
  setenv("PYTHONPATH", path, 1);
  dlopen("%s", RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}
"""

CALLBACKS = """
extern HlrcStatus row_mean_create(const HlrcPassDef *, HlrcContext, HlrcStr, HlrcUser *);
extern HlrcStatus row_mean_traits(HlrcUser, HlrcContext, HlrcMatrixTraits *);
extern HlrcStatus row_mean_peel(HlrcUser, HlrcContext, HlrcPeel *);
extern const HlrcPlugin *hlrc_plugin(const HlrcHost *);
"""


def declarations(header):
    """The header as cffi reads C: behind the preprocessor, without what the compiler alone understands."""
    own = "\n".join(line for line in header.splitlines() if not line.startswith("#include"))
    command = ["cc", "-E", "-P", "-D__attribute__(x)=", "-"]
    text = subprocess.run(command, input=own, capture_output=True, text=True, check=True).stdout
    # The entry is declared with the callbacks.
    return re.sub(r"^const HlrcPlugin \*hlrc_plugin.*?;", "", text, flags=re.M)


def build(folder):
    place = next((place for place in HEADERS if place.is_file()), None)
    if place is None:
        sys.exit("hlrc_pass.h: copy it from passes/sdk/include of hlrc-opt's sources to this file")
    header = place.read_text()
    builder = cffi.FFI()
    builder.cdef(declarations(header))
    builder.embedding_api(CALLBACKS)
    builder.set_source(
        "row_mean",
        SOURCE % (sysconfig.get_path("platlib"), sysconfig.get_config_var("INSTSONAME")),
        libraries=["dl"] if sys.platform == "linux" else [],
        include_dirs=[str(place.parent.resolve())],
        library_dirs=[sysconfig.get_config_var("LIBDIR") or ""],
    )
    builder.embedding_init_code(CODE)
    return builder.compile(tmpdir=str(folder), target="librow_mean.so", verbose=False)


if __name__ == "__main__":
    print(build(pathlib.Path(sys.argv[1])))
