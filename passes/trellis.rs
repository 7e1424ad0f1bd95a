//! Trellis codes: each weight depends on its neighbours' bits as well, at 1 to 8 bits per weight.
//!
//! The matrix is rotated (see `rotate`), cut into tiles of 16 × 16, and each tile coded as one cyclic
//! path through a trellis of 2^states states whose values are computed, not stored. At 2 bits that
//! leaves 0.07 of a Gaussian's variance, where the best scalar code leaves 0.118. With statistics
//! (`--calib`), errors of later columns are made up for by earlier ones (block LDLQ), and columns whose
//! errors cost more get more bits at the same mean.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { trellis(@w.codes, @w.scales, @w.bits, states=12, rotate(out=64, in=64, seed=0)) }`
//!
//! Cost: about 0.2 µs per weight and thread at 2^12 states, four times that at 2^14.
//! Memory: the matrix in f32, with statistics twice `in²` floats more.
//! Source: Tseng et al., "QTIP", arXiv 2406.11235; sums of bytes as codes from ExLlamaV3; bits by column
//! after "WaterSIC", arXiv 2603.04956.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use super::shared::gptq::say_conditioning;
use super::shared::metric::{check_damp, moment_in_place, say_diagonal};
use crate::numeric::hessian::{Blocks, Metric, Order, water_fill};
use crate::numeric::trellis::{Coding, SEAMS, TILE, matrix_bytes, quantize};
use crate::pass::terms::TermData;
use crate::pass::{Access, Calibration, MatrixPass, Pass, PassError, Peel, Peeled, Residual};

/// Options of `trellis`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Mean bits per weight, 1 to 8; anything between whole numbers is made by mixing columns.
    pub bits: f64,
    /// Log2 of the number of states, 8 to 16: each one more doubles the time.
    pub states: u8,
    /// At how many places tiles are cut to find cyclic paths, 1 to 8; the best is kept. Default: 1, and
    /// 2 at 2^16 states; the second takes three times the time for half a percent less error.
    pub seams: Option<u8>,
    /// Whether the matrix is rotated first.
    pub rotate: bool,
    /// Damping of the second moments, as a fraction of their mean diagonal.
    pub damp: f64,
    /// How far the bits of columns may lie from the mean where statistics tell columns apart; 0 gives
    /// all columns the same, up to what a fraction needs.
    pub spread: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bits: 3.0,
            states: 12,
            seams: None,
            rotate: true,
            damp: 0.01,
            spread: 2,
        }
    }
}

pass_entry!("trellis", Options, build);

fn build(options: Options) -> Result<Pass, PassError> {
    let Options {
        bits, states, damp, ..
    } = options;
    if !(1.0..=8.0).contains(&bits) {
        return Err(PassError::new(format!("bits={bits}: use 1 to 8")));
    }
    if !(8..=16).contains(&states) {
        return Err(PassError::new(format!("states={states}: use 8 to 16")));
    }
    if let Some(seams) = options.seams.filter(|seams| !SEAMS.contains(seams)) {
        return Err(PassError::new(format!("seams={seams}: use 1 to 8")));
    }
    check_damp(damp)?;
    Ok(Pass::Matrix(Box::new(Trellis(options))))
}

struct Trellis(Options);

impl MatrixPass for Trellis {
    fn access(&self) -> Access {
        Access::Whole
    }

    fn residual(&self) -> Residual {
        Residual::Drop
    }

    fn quantizes(&self) -> bool {
        true
    }

    fn calibration(&self) -> Calibration {
        Calibration::Used
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        let encoder = 38 * (1u64 << self.0.states) + 256 * (1u64 << self.0.states) / 8;
        let moments = cols.saturating_mul(cols).saturating_mul(4 * 5);
        let columns = rows.saturating_mul(160 * 4 * 2);
        let copy = rows.saturating_mul(cols).saturating_mul(4);
        encoder
            .saturating_add(moments)
            .saturating_add(columns)
            .saturating_add(copy)
            .saturating_add(self.term_bytes(rows, cols))
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        let states = f64::from(1u32 << self.0.states);
        let entries = rows as f64 * cols as f64;
        let passes = 3.0 * f64::from(self.seams()) - 2.0;
        entries * (0.045 * passes * states + 0.05 * cols as f64)
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        matrix_bytes(rows, cols, self.0.bits)
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        if self.0.rotate && peel.rotation.is_none() {
            peel.rotate();
        }
        let (rows, cols) = (peel.rows, peel.cols);
        let feedback = self.feedback(peel)?;
        let coding = Coding {
            states_log2: self.0.states,
            bits: self.bits_of(feedback.as_ref(), cols)?,
            seams: self.seams(),
            stretch: 1.0,
        };
        let coded = quantize(peel.residual, (rows, cols), &coding, feedback.as_ref());
        let term = TermData::Trellis(coded.map_err(PassError::new)?.matrix);
        Ok(Peeled {
            note: term.label(),
            term: Some(term),
        })
    }
}

impl Trellis {
    fn seams(&self) -> u8 {
        let default = if self.0.states == 16 { 2 } else { 1 };
        self.0.seams.unwrap_or(default)
    }

    /// The error feedback of the statistics, if there are any.
    fn feedback(&self, peel: &mut Peel<'_>) -> Result<Option<Blocks>, PassError> {
        let Some(h) = moment_in_place(peel) else {
            return Ok(None);
        };
        say_diagonal(peel);
        let made = Metric::with_feedback(&h, peel.cols, self.0.damp, Order::Natural);
        let (_, feedback, conditioning) = made.map_err(PassError::new)?;
        say_conditioning(peel, &conditioning);
        Ok(Some(feedback.blocks(TILE)))
    }

    /// Bits of each block of columns, so that their mean is what was asked for.
    fn bits_of(&self, feedback: Option<&Blocks>, cols: usize) -> Result<Vec<u8>, PassError> {
        let blocks = cols.div_ceil(TILE);
        let (floor, ceil) = (self.0.bits.floor() as u8, self.0.bits.ceil() as u8);
        let spread = if feedback.is_some() { self.0.spread } else { 0 };
        let low = floor.saturating_sub(spread).max(1);
        let high = ceil.saturating_add(spread).min(8);
        // A trellis at K bits leaves about 4^-K of the variance.
        let errors: Vec<f64> = (low..=high).map(|k| 0.25f64.powi(i32::from(k))).collect();
        let energies = match feedback {
            Some(feedback) => feedback.energies(),
            None => vec![1.0; blocks],
        };
        water_fill(&energies, self.0.bits, low, &errors).map_err(PassError::new)
    }
}
