//! What a launch is expected to take.

use super::{Estimate, Place, Target, Variant};

/// Share of a data sheet's bandwidth that a launch reaches at best: 95 % on an H200 (2026-11-30); 91 to
/// 96 % was measured for plain reads on RTX 3090 and 5090, by others.
const REACHED: f64 = 0.95;

/// What a decode product takes beside its bytes and a launch, microseconds, measured on an H200
/// (2026-11-30): start and end; a norm in front; for 1024 inputs that its blocks round, or that come
/// rounded; low-rank and sparse terms.
const EDGES_US: f64 = 0.3;
const NORM_US: f64 = 0.75;
const ROUNDING_US: f64 = 0.15;
const ROUNDED_US: f64 = 0.04;
const TERMS_US: f64 = 2.8;

/// What attention of decoding takes beside its bytes and a launch, microseconds, measured on an H200
/// (2026-11-30): for heads of 128 a key head and each of its query heads; always; at least, 128 keys of a
/// cache in 8 bits that a block takes at a time.
const ATTENTION_US: f64 = 3.0;
const ATTENTION_KEY_HEAD_US: f64 = 2.7;
const ATTENTION_QUERY_HEAD_US: f64 = 0.475;
const ATTENTION_Q8_STEP_US: f64 = 2.3;

/// Operations of a prompt's product in a clock and multiprocessor, by what its weights are, and its start
/// and end in microseconds, measured on an H200 (2026-12-01), whose tensor cores would allow 3800: codes in
/// groups of 64 and more; of 32; in 8 bits; floats; trellis codes; any beside sparse entries.
const PROMPT_OPERATIONS: f64 = 1270.0;
const PROMPT_OPERATIONS_GROUP_32: f64 = 1040.0;
const PROMPT_OPERATIONS_INT8: f64 = 960.0;
const PROMPT_OPERATIONS_FLOATS: f64 = 910.0;
const PROMPT_OPERATIONS_TRELLIS: f64 = 365.0;
const PROMPT_OPERATIONS_SPARSE: f64 = 525.0;
const PROMPT_EDGES_US: f64 = 5.0;

/// What a lookup of a row of embeddings takes, and for 1024 of its columns, microseconds, measured on an
/// H200 (2026-12-01): one block makes a row.
const EMBED_EDGES_US: f64 = 0.85;
const EMBED_US: f64 = 0.78;

/// Weights in trellis codes that a multiprocessor decodes in a clock for a token, measured on an H200
/// (2026-12-01): of the same 2, 3 or 4 bits in all blocks of columns; of others.
const TRELLIS_WEIGHTS: f64 = 13.0;
const TRELLIS_WEIGHTS_MIXED: f64 = 7.3;

/// What a norm takes beside a launch for 1024 columns, and a rotation for each doubling of its block from 32
/// on, microseconds, measured on an H200 (2026-12-01).
const NORMALIZE_US: f64 = 0.66;
const ROTATION_US: f64 = 0.55;

/// What sampling takes for 1024 logits beside a launch, microseconds, measured on an H200 (2026-11-30).
const SAMPLING_US: f64 = 0.065;

/// What is beside the bytes of a decode product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beside {
    /// Activations of all its tokens.
    pub(super) inputs: u64,
    /// They are in 8 bits.
    pub(super) rounded: bool,
    /// A norm is in front.
    pub(super) norm: bool,
    /// It has low-rank or sparse terms.
    pub(super) terms: bool,
    /// Weights in trellis codes that a multiprocessor decodes at most, and whether all have as many bits.
    pub(super) trellis: Option<(u64, bool)>,
}

/// The time of a decode product.
pub(super) fn product(target: &Target, estimate: Estimate, beside: Beside) -> Estimate {
    let bytes_us = estimate.us - target.launch_us;
    let estimate = match beside.trellis {
        Some((weights, alike)) => {
            let rate = match alike {
                true => TRELLIS_WEIGHTS,
                false => TRELLIS_WEIGHTS_MIXED,
            };
            let us = weights as f64 / (rate * target.clock_mhz);
            longer(estimate, (us - bytes_us).max(0.0))
        }
        None => estimate,
    };
    let each = if beside.rounded {
        ROUNDED_US
    } else {
        ROUNDING_US
    };
    let norm = if beside.norm { NORM_US } else { 0.0 };
    let terms = if beside.terms { TERMS_US } else { 0.0 };
    let more = EDGES_US + norm + terms + each * beside.inputs as f64 / 1024.0;
    longer(estimate, more)
}

/// More of an estimate's time.
fn longer(estimate: Estimate, us: f64) -> Estimate {
    Estimate {
        us: ((estimate.us + us) * 1e3).round() / 1e3,
        ..estimate
    }
}

/// What attention of decoding is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// Query heads of a key head.
    pub(super) group: u64,
    /// Width of a head.
    pub(super) dim: u64,
    /// Keys that a block takes.
    pub(super) keys: u64,
    /// The cache is in 8 bits.
    pub(super) quantized: bool,
}

/// The time of attention of decoding; `bytes_us` is what its bytes take.
pub(super) fn attention(estimate: Estimate, bytes_us: f64, heads: Heads) -> Estimate {
    let each = ATTENTION_KEY_HEAD_US + ATTENTION_QUERY_HEAD_US * heads.group as f64;
    let more = ATTENTION_US + each * heads.dim as f64 / 128.0;
    // Beyond eight query heads keys are gone over once more.
    let passes = heads.group.div_ceil(8);
    let steps = heads.keys.div_ceil(128) * passes;
    let bound = match heads.quantized {
        true => steps as f64 * ATTENTION_Q8_STEP_US - bytes_us,
        false => passes.saturating_sub(1) as f64 * bytes_us,
    };
    longer(estimate, more + bound.max(0.0))
}

/// Blocks of a prompt's product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// How many there are, of 128 rows each.
    pub(super) count: u64,
    /// Tokens of a block.
    pub(super) tokens: u64,
    /// Columns of the matrix, with the ranks of its factors.
    pub(super) columns: u64,
}

/// The time of a prompt's product. All multiprocessors are as long at work as the one that has most blocks.
pub(super) fn prompt(
    target: &Target,
    variant: &Variant,
    estimate: Estimate,
    blocks: Blocks,
) -> Estimate {
    let (format, bits, group) = (
        variant.define("FORMAT"),
        variant.define("BITS"),
        variant.define("GROUP"),
    );
    let rate = match (variant.define("SPARSE"), format) {
        (1, _) => PROMPT_OPERATIONS_SPARSE,
        (_, 4) => PROMPT_OPERATIONS_TRELLIS,
        (_, 0) if bits == 8 => PROMPT_OPERATIONS_INT8,
        (_, 0) if group == 32 => PROMPT_OPERATIONS_GROUP_32,
        (_, 0) => PROMPT_OPERATIONS,
        _ => PROMPT_OPERATIONS_FLOATS,
    };
    let rounds = blocks.count.div_ceil(u64::from(target.sms).max(1)).max(1) as f64;
    let operations = 2.0 * 128.0 * blocks.tokens as f64 * blocks.columns as f64;
    let us = rounds * operations / (rate * target.clock_mhz);
    let more = us + PROMPT_EDGES_US + target.launch_us - estimate.us;
    longer(estimate, more.max(0.0))
}

/// The time of a lookup of rows of `columns` embeddings.
pub(super) fn embedding(estimate: Estimate, columns: u64) -> Estimate {
    let row = EMBED_EDGES_US + EMBED_US * columns as f64 / 1024.0;
    longer(estimate, (row - estimate.us).max(0.0))
}

/// The time of a norm of rows of `columns`, a block for each.
pub(super) fn normalize(estimate: Estimate, columns: u64) -> Estimate {
    longer(estimate, NORMALIZE_US * columns as f64 / 1024.0)
}

/// The time of rotating blocks of so many values.
pub(super) fn rotation(estimate: Estimate, block: u64) -> Estimate {
    let doublings = block.max(1).ilog2().saturating_sub(5);
    longer(estimate, ROTATION_US * f64::from(doublings))
}

/// The time of sampling from `logits`.
pub(super) fn sampling(estimate: Estimate, logits: u64) -> Estimate {
    longer(estimate, SAMPLING_US * logits as f64 / 1024.0)
}

/// Bytes, operations and the time that the slower of both takes, and that of a launch.
pub(super) fn estimate(
    target: &Target,
    place: Place,
    bytes: u64,
    flops: u64,
    tensor: bool,
) -> Estimate {
    let gbps = match place {
        Place::Device => target.bandwidth_gbps * REACHED,
        Place::Host => target.host_gbps,
    };
    // Decode products are int8 on tensor cores; f16 is half of that.
    let tflops = if tensor {
        target.f16_tflops
    } else {
        target.f16_tflops / 4.0
    };
    let us = (bytes as f64 / (gbps * 1e3)).max(flops as f64 / (tflops * 1e6));
    let us = us + target.launch_us;
    Estimate {
        bytes,
        flops,
        // Three digits behind the point are more than enough, and print alike everywhere.
        us: (us * 1e3).round() / 1e3,
    }
}
