//! 8-bit codes with a scale per group.
//!
//! Close to lossless without calibration; also the format for embeddings and heads.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { quant(@w.codes, @w.scales, int8, group=64) }`
//!
//! Default: groups of 64, least squares. On a small Llama's weights that leaves a relative error of
//! 0.0059 at 8.25 bits per weight; rows leave 0.0083 at 8.02, groups of 32 leave 0.0052 at 8.5.
//!
//! Cost: one pass over the weights with `scale=absmax`, about ten times that with `lsq`. Memory: a
//! row; with `group=column` the matrix in f32.
//! Source: round to nearest with a searched scale, as in llama.cpp's k-quants; a zero point as in B.
//! Jacob et al., arXiv 1712.05877.

use super::shared::entry::pass_entry;
use super::shared::quantize::{GroupOption, MethodOption, Options, ScaleOption};
use crate::numeric::Group;

impl Default for Options<8> {
    fn default() -> Self {
        Self {
            group: GroupOption(Group::Size(64)),
            asymmetric: false,
            scale: ScaleOption::Lsq,
            method: MethodOption::Rtn,
            damp: 0.01,
            rounds: 3,
        }
    }
}

pass_entry!("int8", Options<8>, Options::<8>::build);
