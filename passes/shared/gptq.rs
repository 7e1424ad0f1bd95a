//! Integer codes with error feedback: `method=gptq`.

use super::metric::{moment_in_place, say_diagonal};
use crate::numeric::hessian::{Conditioning, GptqOptions, Metric, Order, gptq};
use crate::numeric::quant::quantized_bytes;
use crate::pass::terms::TermData;
use crate::pass::{
    Access, Calibration, MatrixPass, PassError, Peel, Peeled, Quantizer, Remark, RemarkKind,
    Residual,
};

/// The pass behind `int4{method=gptq}` and its kin.
pub struct Gptq {
    /// Bits, groups, scales.
    pub quantizer: Quantizer,
    /// Damping, as a fraction of the mean diagonal.
    pub damp: f64,
    /// Most rounds of fitting behind GPTQ.
    pub rounds: usize,
}

impl MatrixPass for Gptq {
    fn access(&self) -> Access {
        Access::Whole
    }

    fn residual(&self) -> Residual {
        Residual::Drop
    }

    fn quantizer(&self) -> Option<Quantizer> {
        Some(self.quantizer)
    }

    fn calibration(&self) -> Calibration {
        Calibration::Needed
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        // Codes, errors and weights of the whole matrix; moments, their factor and its scratch.
        let weights = rows.saturating_mul(cols).saturating_mul(11);
        let moments = cols.saturating_mul(cols).saturating_mul(4 * 6);
        weights
            .saturating_add(moments)
            .saturating_add(self.term_bytes(rows, cols))
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        let rounds = 1.0 + 4.0 * self.rounds as f64;
        let (rows, cols) = (rows as f64, cols as f64);
        0.05 * rounds * rows * cols * cols + 0.05 * cols * cols * cols + 10.0 * rows * cols
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        let side = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let Quantizer { scheme, group, .. } = self.quantizer;
        let row = quantized_bytes(1, side(cols), scheme, group) as u64;
        row.saturating_mul(rows)
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let Some(h) = moment_in_place(peel) else {
            return Err(PassError::new(
                "method=gptq needs statistics of the inputs: --calib with text, with a file of \
                 `hlrc-opt calibrate`, or with an importance matrix",
            ));
        };
        say_diagonal(peel);
        let (rows, cols) = (peel.rows, peel.cols);
        let made = Metric::with_feedback(&h, cols, self.damp, Order::Activation);
        let (metric, feedback, conditioning) = made.map_err(PassError::new)?;
        say_conditioning(peel, &conditioning);
        let Quantizer {
            scheme,
            group,
            method,
            ..
        } = self.quantizer;
        let options = GptqOptions {
            scales: method,
            rounds: self.rounds,
            ..GptqOptions::default()
        };
        let done = gptq(
            peel.residual,
            rows,
            &metric,
            &feedback,
            scheme,
            group,
            &options,
        );
        let term = TermData::Quant(done.map_err(PassError::new)?.matrix);
        Ok(Peeled {
            note: term.label(),
            term: Some(term),
        })
    }
}

/// What a remark says where the damping that was asked for was not enough.
pub const RAISED: &str = "the damping was raised";

/// A remark where the second moments had to be helped.
pub fn say_conditioning(peel: &mut Peel<'_>, found: &Conditioning) {
    if found.tries > 1 || found.dead > 0 {
        let raised = match found.tries > 1 {
            true => format!(" ({RAISED})"),
            false => String::new(),
        };
        let text = format!(
            "{} of {} inputs are always zero; damped by {} of the mean diagonal{raised}",
            found.dead, peel.cols, found.damp_used
        );
        peel.remarks
            .push(Remark::new(RemarkKind::Analysis, peel.site, text));
    }
}
