//! Sources of the kernels, part of the program.

use std::collections::BTreeSet;

use crate::plan::Variant;

/// Path below `kernels/`, and text.
const SOURCES: &[(&str, &str)] = &[
    source!("attention_decode.cu"),
];

/// The sources that some variants are compiled from, with the headers that they include; path below
/// `kernels/`, and text.
pub fn sources(variants: &[Variant]) -> Vec<(&'static str, &'static str)> {
    let used: BTreeSet<String> = variants.iter().map(|v| format!("{}.cu", v.kernel)).collect();
    let wanted = |(name, _): &&(&'static str, &'static str)| name.ends_with(".cuh") || used.contains(*name);
    SOURCES.iter().filter(wanted).copied().collect()
}

/// The source of a kernel.
pub fn source(kernel: &str) -> Option<&'static str> {
    let name = format!("{kernel}.cu");
    SOURCES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}
