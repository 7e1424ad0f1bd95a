//! Sources of the kernels, part of the program.

use std::collections::BTreeSet;

use crate::plan::Variant;

/// A source, by its path below `kernels/`.
macro_rules! source {
    ($path:literal) => {
        ($path, include_str!(concat!("../../../kernels/", $path)))
    };
}

/// Path below `kernels/`, and text.
const SOURCES: &[(&str, &str)] = &[
    source!("attention_decode.cu"),
    source!("attention_prefill.cu"),
    source!("common/activation.cuh"),
    source!("common/activations.cuh"),
    source!("common/device.cuh"),
    source!("common/half.cuh"),
    source!("common/half_rtc.cuh"),
    source!("common/kv.cuh"),
    source!("common/memory.cuh"),
    source!("common/mma.cuh"),
    source!("common/packs.cuh"),
    source!("common/prefill_codes.cuh"),
    source!("common/products.cuh"),
    source!("common/q8.cuh"),
    source!("common/reduce.cuh"),
    source!("common/rotary.cuh"),
    source!("common/stream.cuh"),
    source!("common/terms.cuh"),
    source!("common/trellis.cuh"),
    source!("common/unpack.cuh"),
    source!("elementwise.cu"),
    source!("embed.cu"),
    source!("fused_linear.cu"),
    source!("hadamard.cu"),
    source!("linear_prefill.cu"),
    source!("low_rank_inner.cu"),
    source!("moe_combine.cu"),
    source!("moe_route.cu"),
    source!("moe_sort.cu"),
    source!("normalize.cu"),
    source!("quantize.cu"),
    source!("read_bandwidth.cu"),
    source!("rope_append.cu"),
    source!("sample.cu"),
];

/// The sources that some variants are compiled from, with the headers that they include; path below
/// `kernels/`, and text.
pub fn sources(variants: &[Variant]) -> Vec<(&'static str, &'static str)> {
    let used: BTreeSet<String> = variants
        .iter()
        .map(|v| format!("{}.cu", v.kernel))
        .collect();
    let wanted =
        |(name, _): &&(&'static str, &'static str)| name.ends_with(".cuh") || used.contains(*name);
    SOURCES.iter().filter(wanted).copied().collect()
}

/// The source of a kernel.
pub fn source(kernel: &str) -> Option<&'static str> {
    let name = format!("{kernel}.cu");
    SOURCES
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, text)| *text)
}

/// A kernel's source as one file, headers in the place where they are included.
pub fn flattened(kernel: &str) -> Option<String> {
    crate::runtime::flattened(&format!("{kernel}.cu"), SOURCES)
}
