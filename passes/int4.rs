//! 4-bit codes with a scale per group.
//!
//! The common ground of deployed formats: symmetric groups of 32 are GGUF's Q4_0 and ONNX Runtime's
//! MatMulNBits without loss, with scales that are exact in f16 and bf16.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { quant(@w.codes, @w.scales, int4, group=32) }`
//!
//! Default: symmetric groups of 32, least squares. On a small Llama's weights that leaves a relative
//! error of 0.089 at 4.5 bits per weight (`scale=absmax`: 0.098). `{group=64 asymmetric}` leaves as
//! much at 4.32 bits, for back ends that take zero points.
//!
//! Cost: one pass over the weights with `scale=absmax`, about ten times that with `lsq`. Memory: a
//! row; with `group=column` the matrix in f32.
//! Source: round to nearest with a searched scale, as in llama.cpp's k-quants; a zero point as in B.
//! Jacob et al., arXiv 1712.05877.

use super::shared::entry::pass_entry;
use super::shared::quantize::{GroupOption, MethodOption, Options, ScaleOption};
use crate::numeric::Group;

impl Default for Options<4> {
    fn default() -> Self {
        Self {
            group: GroupOption(Group::Size(32)),
            asymmetric: false,
            scale: ScaleOption::Lsq,
            method: MethodOption::Rtn,
            damp: 0.01,
            rounds: 3,
        }
    }
}

pass_entry!("int4", Options<4>, Options::<4>::build);
