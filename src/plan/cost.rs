//! What a launch is expected to take.

use super::{Estimate, Place, Target};

/// Share of a data sheet's bandwidth that a launch reaches at best: 95 % on an H200 (2026-11-30); 91 to
/// 96 % was measured for plain reads on RTX 3090 and 5090, by others.
const REACHED: f64 = 0.95;

/// What a decode product takes beside its bytes and a launch, microseconds, measured on an H200
/// (2026-11-30): start and end; a norm in front; for 1024 inputs that its blocks round, or that come
/// rounded; low-rank and sparse terms.
const EDGES_US: f64 = 0.7;
const NORM_US: f64 = 0.75;
const ROUNDING_US: f64 = 0.15;
const ROUNDED_US: f64 = 0.04;
const TERMS_US: f64 = 5.0;

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
}

/// The time of a decode product.
pub(super) fn product(estimate: Estimate, beside: Beside) -> Estimate {
    let each = if beside.rounded {
        ROUNDED_US
    } else {
        ROUNDING_US
    };
    let norm = if beside.norm { NORM_US } else { 0.0 };
    let terms = if beside.terms { TERMS_US } else { 0.0 };
    let more = EDGES_US + norm + terms + each * beside.inputs as f64 / 1024.0;
    Estimate {
        us: ((estimate.us + more) * 1e3).round() / 1e3,
        ..estimate
    }
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
