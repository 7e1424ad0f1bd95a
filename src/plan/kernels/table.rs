//! Names, defines and parameters of all kernels.

use super::Kernel;

/// Every kernel that plans use.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        name: "fused_linear",
        abi: 3,
        defines: "FORMAT=0..5 BITS=0|2|3|4|8..16 GROUP=0|32|64|128|256 ZEROS=0|1 M=1..8 ACT=0|1 XIN=0..3 XSCALE=0|1 \
                  LOWRANK=0|1 VFORMAT=0|4|8|16|32 UFORMAT=0|4|8|16|32 SPARSE=0|1 ACTIVATION=0..5 GLU=0|1 \
                  BIAS=0|1 RESIDUAL=0|1 SOFTCAP=0|1 EXPERTS=0..2 SPLIT=0|1 STAGES=2..8 WARPS=5..16 \
                  ROTATED=0..2",
        args: "x:const f32* xq:const s8* xs:const f32* xsum:const i32* gain:const f32* beta:const f32* \
               xscale:const f32* xr:const f32* q:const u8* scales:const f16* zeros:const u8* \
               v:const u8* v_scales:const f16* v_tiles:const u32* v_index:const u32* \
               u:const u8* u_scales:const f16* u_tiles:const u32* u_index:const u32* \
               s:const u32* s_offsets:const u32* bias:const f32* residual:const f32* \
               ids:const i32* weights:const f32* h:f32* partial:f32* counter:u32* y:f32* y_terms:f32* \
               rows:i32 cols:i32 tiles:i32 ldx:i32 ldy:i32 ldr:i32 rank:i32 top_k:i32 ldxr:i32 ldt:i32 \
               eps:f32 scale:f32 softcap:f32",
        block: 512,
    },
    Kernel {
        name: "linear_prefill",
        abi: 2,
        defines: "FORMAT=0..5 BITS=0|2|3|4|8..16 GROUP=0|32|64|128|256 ZEROS=0|1 XSCALE=0|1 LOWRANK=0|1 \
                  VFORMAT=0|4|8|16|32 UFORMAT=0|4|8|16|32 SPARSE=0|1 ACTIVATION=0..5 GLU=0|1 BIAS=0|1 \
                  RESIDUAL=0|1 SOFTCAP=0|1 EXPERTS=0..2",
        args: "x:const f16* xscale:const f32* q:const u8* scales:const f16* zeros:const u8* \
               v:const u8* v_scales:const f16* v_tiles:const u32* v_index:const u32* \
               u:const u8* u_scales:const f16* u_tiles:const u32* u_index:const u32* \
               s:const u32* s_offsets:const u32* bias:const f32* residual:const f32* h:f32* y:f32* \
               scalars:const i32* slots:const i32* starts:const i32* rows:i32 cols:i32 tiles:i32 ldx:i32 \
               ldy:i32 ldr:i32 rank:i32 top_k:i32 scale:f32 softcap:f32",
        block: 256,
    },
    Kernel {
        name: "low_rank_inner",
        abi: 2,
        defines: "VFORMAT=4|8|16|32 EXPERTS=0..2",
        args: "x:const f16* v:const u8* v_scales:const f16* v_tiles:const u32* v_index:const u32* h:f32* \
               scalars:const i32* slots:const i32* starts:const i32* ldx:i32 rank:i32 top_k:i32",
        block: 256,
    },
    Kernel {
        name: "embed",
        abi: 1,
        defines: "FORMAT=0..3 BITS=0|2|3|4|8 GROUP=0|32|64|128|256 ZEROS=0|1",
        args: "ids:const i32* scalars:const i32* q:const u8* scales:const f16* zeros:const u8* y:f32* \
               rows:i32 width:i32 ldy:i32 add:i32 scale:f32",
        block: 256,
    },
    Kernel {
        name: "normalize",
        abi: 1,
        defines: "KIND=0|1 RESIDUAL=0|1 OUT=0..2",
        args: "x:const f32* gain:const f32* beta:const f32* residual:const f32* y:f32* y16:f16* yq:s8* \
               ys:f32* ysum:i32* scalars:const i32* width:i32 ldx:i32 ldy:i32 eps:f32",
        block: 256,
    },
    Kernel {
        name: "quantize",
        abi: 1,
        defines: "OUT=1|2",
        args: "x:const f32* xscale:const f32* y16:f16* yq:s8* ys:f32* ysum:i32* scalars:const i32* \
               width:i32 ldx:i32 ldy:i32",
        block: 256,
    },
    Kernel {
        name: "attention_decode",
        abi: 2,
        defines: "HEAD_DIM=1..512 GROUP_Q=1..128 KV=0|1 PAGED=0|1 QK_NORM=0|1 ROPE=0..2 SOFTCAP=0|1 \
                  SPLITS=1..64",
        args: "qkv:const f32* q_gain:const f32* k_gain:const f32* inv_freq:const f32* k_cache:u8* \
               v_cache:u8* k_scales:f16* v_scales:f16* pages:const i32* positions:const i32* \
               partial:f32* counter:u32* y:f32* \
               ldqkv:i32 q_offset:i32 k_offset:i32 v_offset:i32 ldy:i32 heads:i32 kv_heads:i32 \
               rotary_dim:i32 capacity:i32 page:i32 max_pages:i32 window:i32 norm_eps:f32 \
               rope_factor:f32 scale:f32 softcap:f32",
        block: 256,
    },
    Kernel {
        name: "rope_append",
        abi: 1,
        defines: "HEAD_DIM=1..512 KV=0|1 PAGED=0|1 QK_NORM=0|1 ROPE=0..2",
        args: "qkv:f32* q_gain:const f32* k_gain:const f32* inv_freq:const f32* k_cache:u8* v_cache:u8* \
               k_scales:f16* v_scales:f16* pages:const i32* scalars:const i32* \
               ldqkv:i32 q_offset:i32 k_offset:i32 v_offset:i32 heads:i32 kv_heads:i32 rotary_dim:i32 \
               capacity:i32 page:i32 max_pages:i32 norm_eps:f32 rope_factor:f32",
        block: 128,
    },
    Kernel {
        name: "attention_prefill",
        abi: 1,
        defines: "HEAD_DIM=1..256 GROUP_Q=1..128 KV=0|1 PAGED=0|1 SOFTCAP=0|1",
        args: "qkv:const f32* k_cache:const u8* v_cache:const u8* k_scales:const f16* v_scales:const f16* \
               pages:const i32* scalars:const i32* y:f32* ldqkv:i32 q_offset:i32 ldy:i32 heads:i32 \
               kv_heads:i32 capacity:i32 page:i32 max_pages:i32 window:i32 scale:f32 softcap:f32",
        block: 128,
    },
    Kernel {
        name: "elementwise",
        abi: 1,
        defines: "OP=0..7 ACTIVATION=0..5",
        args: "a:const f32* b:const f32* y:f32* scalars:const i32* width:i32 lda:i32 ldb:i32 ldy:i32 \
               factor:f32",
        block: 256,
    },
    Kernel {
        name: "moe_route",
        abi: 1,
        defines: "NORMALIZE=0|1",
        args: "logits:const f32* ids:i32* weights:f32* scalars:const i32* experts:i32 top_k:i32 ldl:i32",
        block: 32,
    },
    Kernel {
        name: "moe_sort",
        abi: 1,
        defines: "",
        args: "ids:const i32* slots:i32* starts:i32* scalars:const i32* tokens:i32 experts:i32 top_k:i32",
        block: 1024,
    },
    Kernel {
        name: "moe_combine",
        abi: 1,
        defines: "",
        args: "x:const f32* weights:const f32* residual:const f32* y:f32* scalars:const i32* width:i32 \
               top_k:i32 ldx:i32 ldy:i32 ldr:i32",
        block: 256,
    },
    Kernel {
        name: "hadamard",
        abi: 1,
        defines: "INVERSE=0|1 BIAS=0|1 RESIDUAL=0|1 ACTIVATION=0..5 OUT=0|1",
        args: "x:const f32* signs:const u32* bias:const f32* residual:const f32* y:f32* y16:f16* \
               scalars:const i32* width:i32 ldx:i32 ldy:i32 ldr:i32 block:i32",
        block: 256,
    },
    Kernel {
        name: "sample",
        abi: 1,
        defines: "",
        args: "logits:const f32* token:i32* params:const f32* top_k:const i32* rows:i32 ldl:i32",
        block: 1024,
    },
];
