//! Rotates a matrix on both sides, so that the quantizer behind it sees nearly Gaussian entries.
//!
//! Outliers are spread over blocks by Hadamard matrices with random signs, whose seed is all that is
//! stored. The executor rotates activations, which costs a few additions per value; matrices of one
//! input share that.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { quant(@w.codes, @w.scales, int4, group=32, rotate(out=64, in=64, seed=0)) }`
//!         (by `rotate,int4`)
//!
//! Blocks are the largest powers of two, up to 512, that divide the sides. `trellis` rotates by itself.
//! Passes that take low-rank or sparse terms stand before this one. `fold-rotations` turns neighbours
//! together instead, mostly without a cost at run time.
//!
//! Cost: `entries · log block` additions. Memory: the matrix in f32.
//! Source: incoherence processing of QuIP#, Tseng et al., arXiv 2402.04396; QuaRot, Ashkboos et al.,
//! arXiv 2404.00456.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use crate::pass::{Access, MatrixPass, Pass, PassError, Peel, Peeled, Residual};

/// It has none.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {}

pass_entry!("rotate", Options, build);

fn build(_: Options) -> Result<Pass, PassError> {
    Ok(Pass::Matrix(Box::new(Rotate)))
}

struct Rotate;

impl MatrixPass for Rotate {
    fn access(&self) -> Access {
        Access::Whole
    }

    fn residual(&self) -> Residual {
        Residual::Keep
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        4 * rows.saturating_add(cols)
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        3.0 * rows as f64 * cols as f64
    }

    fn term_bytes(&self, _: u64, _: u64) -> u64 {
        0
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        if peel.rotation.is_some() {
            return Err(PassError::new(
                "it is rotated already; `rotate` stands once, before the quantizer",
            ));
        }
        if !peel.quantized_later {
            return Err(PassError::new(
                "no quantizer stands behind `rotate`, so it would have no effect; put one there, or \
                 leave it out",
            ));
        }
        let rotation = peel.rotate();
        Ok(Peeled {
            term: None,
            note: format!("{}x{}", rotation.out_block, rotation.in_block),
        })
    }
}
