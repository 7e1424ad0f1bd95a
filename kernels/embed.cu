// Rows of an embedding table, out of the pack that a tied head multiplies with (fused_linear).
//
// y[token] = scale · table[ids[token]], or y += that where `add` is not 0. `ids` outside [0, rows)
// give a row of NaN. grid.x: tokens; tokens beyond scalars[0] (null: none) are left alone.
// Bytes: a row of the table (sectors of 32 bytes hold 2 rows), 4 · width written.
//
// kernel: embed abi=1
// defines: FORMAT=0..3 BITS=0|2|3|4|8 GROUP=0..1048576 ZEROS=0|1
// args: ids:const i32* scalars:const i32* q:const u8* scales:const f16* zeros:const u8* y:f32*
// args: rows:i32 width:i32 ldy:i32 add:i32 scale:f32
// block: 256
#include "common/memory.cuh"
#include "common/unpack.cuh"

extern "C" __global__ void __launch_bounds__(256)
embed(const int* __restrict__ ids, const int* __restrict__ scalars, const unsigned char* __restrict__ q, const __half* __restrict__ scales,
      const unsigned char* __restrict__ zeros, float* __restrict__ y, int rows, int width, int ldy, int add, float scale) {
    start_next_grid();
    wait_previous_grid();
    const int token = (int)blockIdx.x;
    if (scalars && token >= scalars[0]) return;
    const int id = ids[token];
    float* out = y + (size_t)token * (size_t)ldy;
    const bool known = id >= 0 && id < rows;
    const int tile = known ? id >> 4 : 0, r = id & 15;
    const unsigned char* packed = q + (size_t)tile * tile_bytes<FORMAT, BITS>(width);
    for (int k = (int)threadIdx.x; k < width; k += (int)blockDim.x) {
        float v = __uint_as_float(0x7fc00000u);
        if (known) {
#if FORMAT == 0
            const int groups = GROUP == 0 ? 1 : (width + GROUP - 1) / (GROUP == 0 ? 1 : GROUP), group = GROUP == 0 ? 0 : k / (GROUP == 0 ? 1 : GROUP);
            const size_t at = (size_t)tile * (size_t)groups + (size_t)group;
            int zero = 1 << (BITS - 1);
            if (ZEROS) zero = BITS == 8 ? zeros[at * 16 + (size_t)(2 * (r & 7) + (r >> 3))] : zeros[at * 8 + (size_t)(r & 7)] >> (4 * (r >> 3)) & 15;
            v = (float)(unpack_code<BITS>(packed, width, r, k) - zero) * __half2float(scales[at * 16 + (size_t)(2 * (r & 7) + (r >> 3))]);
#else
            v = unpack_float<FORMAT>(packed, r, k);
#endif
        }
        v *= scale;
        out[k] = add ? out[k] + v : v;
    }
}
#ifdef HLRC_EMU
HLRC_EMU_EXPORT(embed)
#endif
