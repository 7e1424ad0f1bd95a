//! What a launch is expected to take.

use super::{Estimate, Place, Target};

/// Share of a data sheet's bandwidth that a launch reaches at best: 91 to 96 % was measured for plain
/// reads on RTX 3090 and 5090, by others.
const REACHED: f64 = 0.92;

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
