//! Lets a quantizer and low-rank factors settle against each other.
//!
//! Of what passes before it made, the last quantizer codes what the low-rank term leaves and the
//! low-rank term is solved again for what the codes have lost, by turns, with the quantizer's own
//! options (error feedback where it has that). The best state is kept, so that the error never rises;
//! other terms (outliers) stay as they are, and so do all sizes. With statistics (`--calib`) the error
//! is that of the outputs on the inputs that were seen, else that of the weights.
//!
//! Before: `linear %x { low_rank(int8(@w.u, @w.u_scales), int8(@w.v, @w.v_scales), r=32) +
//! quant(@w.codes, @w.scales, int4, group=32) }`
//! After:  the same terms with other values.
//!
//! It goes behind the passes whose terms it changes, in one pipeline: `lowrank,int4{method=gptq},refine`
//! or `int4{method=gptq},lowrank,refine`. Low rank over several blocks is left alone.
//!
//! Cost: iterations times the quantizer's and that of `lowrank`. Memory: the matrix in f32 five times,
//! with statistics four times `in²` floats.
//! Source: Y. Li et al., "LoftQ", arXiv 2310.08659; R. Saha et al., "CALDERA", arXiv 2405.18886.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use super::shared::gptq::say_conditioning;
use super::shared::metric::{DAMP, MetricOption, calibration, check_damp, metric_bytes, moment_of};
use crate::ir::Rotation;
use crate::numeric::hessian::{Metric, Order, RefineOptions, damped_objective, refine as by_turns};
use crate::numeric::lowrank::Options as SvdOptions;
use crate::numeric::{FactorFormat, LowRank};
use crate::pass::terms::TermData;
use crate::pass::{
    Access, Calibration, MatrixPass, Pass, PassError, Peel, Peeled, Remark, RemarkKind, Residual,
};

/// Options of `refine`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Refine {
    /// Most turns; the first that does not lower the error is the last.
    #[schemars(range(min = 1, max = 100))]
    pub iters: u32,
    /// In which metric: of the outputs on the inputs that were seen (`inputs`, which needs `--calib`) or
    /// of the weights. Default: `inputs` where there are statistics.
    pub metric: Option<MetricOption>,
    /// With `inputs`: damping of the second moments, as a fraction of their mean diagonal.
    pub damp: f64,
}

impl Default for Refine {
    fn default() -> Self {
        Self {
            iters: 4,
            metric: None,
            damp: DAMP,
        }
    }
}

impl Refine {
    fn build(self) -> Result<Pass, PassError> {
        check_damp(self.damp)?;
        Ok(Pass::Matrix(Box::new(self)))
    }
}

/// What is changed: places among the earlier terms, and the factors' shape.
struct Pair {
    quantized: usize,
    low_rank: usize,
    rank: usize,
    format: FactorFormat,
}

/// The last quantizer and the last low-rank term, or why there are none.
fn pair(peel: &Peel<'_>) -> Result<Pair, &'static str> {
    let last = |is: fn(&TermData) -> bool| peel.earlier.iter().rposition(|e| is(e.term));
    let quantized = last(|t| {
        matches!(
            t,
            TermData::Quant(_) | TermData::Trellis(_) | TermData::Rotated(..)
        )
    });
    let low_rank = last(|t| matches!(t, TermData::LowRank(_)));
    let (Some(quantized), Some(low_rank)) = (quantized, low_rank) else {
        return Err("no pass before it made both a quantized and a low-rank term of this matrix");
    };
    let whole = |l: &LowRank| match l.blocks.as_slice() {
        [one] if (one.rows, one.cols) == (peel.rows, peel.cols) => Some(one.rank),
        _ => None,
    };
    match &*peel.earlier[low_rank].term {
        TermData::LowRank(l) => Ok(Pair {
            quantized,
            low_rank,
            rank: whole(l).ok_or("low rank over several blocks is left as it is")?,
            format: l.u.format(),
        }),
        _ => Err("there is no low-rank term"),
    }
}

impl MatrixPass for Refine {
    fn access(&self) -> Access {
        Access::Whole
    }

    fn residual(&self) -> Residual {
        Residual::Drop
    }

    fn calibration(&self) -> Calibration {
        calibration(self.metric)
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        // What is refined, targets and what is left, twice; whitening and sketches; a quantizer at work.
        let entries = rows.saturating_mul(cols);
        let moments = metric_bytes(None, cols).saturating_mul(2);
        entries.saturating_mul(48).saturating_add(moments)
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        let (entries, cols) = (rows as f64 * cols as f64, cols as f64);
        f64::from(self.iters) * (entries * (30.0 + 0.4 * cols) + 0.05 * cols * cols * cols)
    }

    fn term_bytes(&self, _: u64, _: u64) -> u64 {
        0
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let (rows, cols) = (peel.rows, peel.cols);
        let found = match pair(peel) {
            Ok(found) => found,
            Err(text) => {
                peel.remarks.push(Remark::missed(peel.site, text));
                return Ok(Peeled::nothing());
            }
        };
        let known = moment_of(peel, self.metric)?;
        let h = known.clone().unwrap_or_else(|| identity(cols));
        let damp = if known.is_some() { self.damp } else { 0.0 };
        let (metric, feedback, conditioning) =
            Metric::with_feedback(&h, cols, damp, Order::Activation)?;
        if known.is_some() {
            say_conditioning(peel, &conditioning);
        }
        let rotation = *peel.rotation;
        let mut residual = peel.residual.to_vec();
        if let Some(rotation) = rotation {
            rotation.undo(&mut residual, cols);
        }
        let before = damped_objective(&metric, &residual, rows)?;
        // What both terms stand for together.
        for place in [found.quantized, found.low_rank] {
            peel.earlier[place].term.add_rows(0..rows, &mut residual)?;
        }
        let target = residual;
        let total = damped_objective(&metric, &target, rows)?;
        let options = RefineOptions {
            rank: found.rank,
            format: found.format,
            svd: SvdOptions {
                seed: peel.seed,
                ..SvdOptions::default()
            },
            iterations: self.iters as usize,
        };
        let start = match &*peel.earlier[found.low_rank].term {
            TermData::LowRank(low_rank) => Some(low_rank),
            _ => None,
        };
        let again = |left: &[f32]| quantize(peel, found.quantized, left);
        let done = by_turns(&target, rows, &metric, &feedback, &options, start, again)?;
        let error = |objective: &f64| format!("{:.3e}", (objective / total).sqrt());
        let turns: Vec<String> = done.objectives.iter().map(error).collect();
        let which = match known {
            Some(_) => "on the inputs that were seen",
            None => "of the weights",
        };
        let after = done.objectives.last().copied().unwrap_or(f64::INFINITY);
        let (start, turns) = (error(&before), turns.join(", "));
        if after >= before {
            let text = format!("error {which} {start} is kept: turns gave {turns}");
            peel.remarks.push(Remark::missed(peel.site, text));
            return Ok(Peeled::nothing());
        }
        let text = format!("error {which} {start}, by turns {turns}");
        let passed = Remark::new(RemarkKind::Passed, peel.site, text);
        peel.remarks.push(passed);
        *peel.earlier[found.quantized].term = done.code;
        *peel.earlier[found.low_rank].term = TermData::LowRank(done.low_rank);
        peel.residual.copy_from_slice(&done.residual);
        if let Some(rotation) = rotation {
            rotation.apply(peel.residual, cols);
        }
        Ok(Peeled {
            term: None,
            note: format!("{} turns", done.objectives.len()),
        })
    }
}

fn identity(n: usize) -> Vec<f32> {
    let mut h = vec![0f32; n * n];
    for at in 0..n {
        h[at * (n + 1)] = 1.0;
    }
    h
}

/// Codes `left` as an earlier pass would: its term, and what that decodes to.
fn quantize(
    peel: &Peel<'_>,
    place: usize,
    left: &[f32],
) -> Result<(TermData, Vec<f32>), PassError> {
    let (rows, cols) = (peel.rows, peel.cols);
    let earlier = &peel.earlier[place];
    let mut rotation: Option<Rotation> = match &*earlier.term {
        TermData::Rotated(rotation, _) => Some(*rotation),
        _ => None,
    };
    let mut residual = left.to_vec();
    if let Some(rotation) = rotation {
        rotation.apply(&mut residual, cols);
    }
    let mut again = Peel {
        site: peel.site,
        rows,
        cols,
        residual: &mut residual,
        seed: peel.seed,
        next: None,
        quantized_later: false,
        moments: peel.moments,
        rotation: &mut rotation,
        rotation_seed: peel.rotation_seed,
        earlier: Vec::new(),
        // It said them the first time.
        remarks: &mut Vec::new(),
    };
    let term = earlier.pass.peel(&mut again)?.term;
    let term = term.ok_or_else(|| PassError::new("the quantizer made no term"))?;
    if let Some(rotation) = rotation {
        rotation.undo(&mut residual, cols);
    }
    let decoded = left.iter().zip(&residual).map(|(w, r)| w - r).collect();
    let term = match rotation {
        Some(rotation) => TermData::Rotated(rotation, Box::new(term)),
        None => term,
    };
    Ok((term, decoded))
}

pass_entry!("refine", Refine, Refine::build);
