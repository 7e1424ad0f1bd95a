// What lanes of a warp do together.
#pragma once
enum HlrcEmuKind {
    HLRC_EMU_SYNC = 0,
    HLRC_EMU_SHUFFLE,  // param: source lane; words: 1 or 2
    HLRC_EMU_BALLOT,   // in[0]: predicate; out[0]: lanes
    HLRC_EMU_REDUCE_ADD,
    HLRC_EMU_REDUCE_MIN,
    HLRC_EMU_REDUCE_MAX, // of 32-bit integers (signed for min and max)
    HLRC_EMU_MMA_F16,  // m16n8k16: in a[4] b[2] c[4] (f32); out d[4]
    HLRC_EMU_MMA_BF16,
    HLRC_EMU_MMA_S8,   // m16n8k32: s8 × s8 → s32
    HLRC_EMU_MMA_U8S8, // a unsigned
    HLRC_EMU_MATRIX,   // ldmatrix: in a row of 16 bytes; param: 0 plain, 1 transposed; out 4 words
};
enum HlrcEmuAtomic { HLRC_EMU_ADD = 0, HLRC_EMU_ADD_FLOAT, HLRC_EMU_MIN, HLRC_EMU_MAX, HLRC_EMU_MAX_UNSIGNED, HLRC_EMU_EXCHANGE, HLRC_EMU_CAS, HLRC_EMU_OR };
