//! 2-bit codes with a scale and a zero point per group.
//!
//! Four levels leave much error by themselves; meant as the base under `lowrank` and `outlier`, or
//! for the layers that hurt least.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { quant(@w.codes, @w.scales, @w.zeros, int2, group=64) }`
//!
//! Default: asymmetric groups of 64, least squares. On a small Llama's weights that leaves a relative
//! error of 0.36 at 2.29 bits per weight; symmetric groups of 32 leave 0.38 at 2.5.
//!
//! Cost: one pass over the weights with `scale=absmax`, about ten times that with `lsq`. Memory: a
//! row; with `group=column` the matrix in f32.
//! Source: round to nearest with a searched scale, as in llama.cpp's k-quants; a zero point as in B.
//! Jacob et al., arXiv 1712.05877.

use super::shared::entry::pass_entry;
use super::shared::quantize::{GroupOption, MethodOption, Options, ScaleOption};
use crate::numeric::Group;

impl Default for Options<2> {
    fn default() -> Self {
        Self {
            group: GroupOption(Group::Size(64)),
            asymmetric: true,
            scale: ScaleOption::Lsq,
            method: MethodOption::Rtn,
            damp: 0.01,
            rounds: 3,
        }
    }
}

pass_entry!("int2", Options<2>, Options::<2>::build);
