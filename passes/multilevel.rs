//! A sum over levels of block-diagonal low-rank terms, ranks by energy per byte.
//!
//! Level 0 is the whole matrix, level l its 2^l diagonal blocks. A budget of bytes goes to the
//! singular triplets that hold most energy per byte, on whichever level they are, so that structure
//! near the diagonal gets what a flat term would spend on all of the matrix. With `energy` triplets are
//! taken in that order until they hold the share of the energy. Fewer levels are tried too, and the best
//! is kept, so that it is no worse than `lowrank` in the same metric.
//!
//! With statistics (`--calib`) energies are those of the outputs on the inputs that were seen, and a block
//! is fitted to all of its rows' outputs that its inputs can make up for.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { low_rank(int8(@w.u, @w.u_scales), int8(@w.v, @w.v_scales),
//! blocks=[(0+576, 0+576, r=20), (0+288, 0+288, r=9), (288+288, 288+288, r=4)]) + dense(@rest) }`;
//! the rest goes to the next pass, and is dropped where none follows (`residual=keep` stores it).
//!
//! Cost: for three levels about twelve flat decompositions of the largest rank; in a metric, in³ / 2 and
//! 3 · out · in² more. Memory: the matrix in f32 twice; in a metric, seven times and 5 · in² floats.
//! Source: T. Parshakova, T. Hastie, E. Darve, S. Boyd, "Factor fitting, rank allocation, and
//! partitioning in multilevel low rank matrices", arXiv 2310.19214.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use super::shared::factors::{FactorsOption, ResidualOption, percent};
use super::shared::gptq::say_conditioning;
use super::shared::metric::{DAMP, MetricOption, calibration, check_damp, metric_bytes, moment_of};
use crate::numeric::hessian::whitened_levels;
use crate::numeric::lowrank::multilevel::{Budget, Levels, decompose};
use crate::numeric::lowrank::{Decomposition, Options as SvdOptions};
use crate::pass::terms::TermData;
use crate::pass::{
    Access, Calibration, MatrixPass, Pass, PassError, Peel, Peeled, Remark, RemarkKind, Residual,
};

/// Options of `multilevel`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Multilevel {
    /// Number of levels, the whole matrix being the first.
    #[schemars(range(min = 1, max = 16))]
    pub levels: u32,
    /// Budget: as many bytes as a flat term of this rank takes. Where neither this, `bpw` nor
    /// `energy` is given: a sixteenth of the shorter side, rounded up to a multiple of 8, at most 64.
    #[schemars(range(min = 1))]
    pub rank: Option<u32>,
    /// Instead of `rank`: the budget in bits per weight of the matrix.
    #[schemars(range(min = 0.0))]
    pub bpw: Option<f64>,
    /// Instead of a budget: as few bytes as hold this share of the energy, as a
    /// fraction (0.9) or in percent (90%).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub energy: Option<f64>,
    /// Upper bound of the rank of a block. Default: what the budget buys for the whole matrix; with
    /// `energy`, where factors have half as many entries as the matrix.
    #[schemars(range(min = 1))]
    pub max_rank: Option<u32>,
    /// How factors are stored. `int8` leaves no measurable error behind; `int4` adds a percent of
    /// what the rank leaves.
    pub factors: FactorsOption,
    /// What becomes of the rest. Default: kept where a later pass takes it up, else dropped.
    pub residual: Option<ResidualOption>,
    /// In which metric: of the outputs on the inputs that were seen (`inputs`, which needs `--calib`) or
    /// of the weights. Default: `inputs` where there are statistics.
    pub metric: Option<MetricOption>,
    /// With `inputs`: damping of the second moments, as a fraction of their mean diagonal.
    pub damp: f64,
}

impl Default for Multilevel {
    fn default() -> Self {
        Self {
            levels: 3,
            rank: None,
            bpw: None,
            energy: None,
            max_rank: None,
            factors: FactorsOption::Int8,
            residual: None,
            metric: None,
            damp: DAMP,
        }
    }
}

impl Multilevel {
    fn build(self) -> Result<Pass, PassError> {
        let measures = [
            self.rank.is_some(),
            self.bpw.is_some(),
            self.energy.is_some(),
        ];
        if measures.into_iter().filter(|given| *given).count() > 1 {
            return Err(PassError::new("give one of `rank`, `bpw` and `energy`"));
        }
        check_damp(self.damp)?;
        Ok(Pass::Matrix(Box::new(self)))
    }

    /// The budget, and the largest rank of a block.
    fn budget(&self, rows: u64, cols: u64) -> (Budget, u64) {
        let short = rows.min(cols);
        let (budget, rank) = match (self.energy, self.bpw) {
            (Some(energy), _) => {
                let even = rows as u128 * cols as u128 / (rows as u128 + cols as u128).max(1);
                (Budget::Energy(energy), (even / 2) as u64)
            }
            (None, Some(bpw)) => {
                let bytes = (bpw * rows as f64 * cols as f64 / 8.0) as u64;
                let triplet = self.factors.bytes(rows.saturating_add(cols), 64).max(1);
                (
                    Budget::Bytes(bytes as usize),
                    bytes.saturating_mul(64) / triplet,
                )
            }
            (None, None) => {
                let default = (short / 16).next_multiple_of(8).clamp(8, 64);
                let rank = self.rank.map_or(default, u64::from).min(short);
                (Budget::Rank(rank as usize), rank)
            }
        };
        let most = self.max_rank.map_or(rank, u64::from);
        (budget, most.clamp(1, short.max(1)))
    }

    fn remark(&self, peel: &mut Peel<'_>, done: &Decomposition, in_metric: bool) {
        let blocks = &done.low_rank.blocks;
        let held = percent(done.kept / done.total);
        let bits = 8.0 * done.low_rank.bytes() as f64 / (peel.rows * peel.cols) as f64;
        let (count, most) = (blocks.len(), done.low_rank.max_rank());
        let ranks = format!("{count} block(s) of rank up to {most} hold {held}");
        let text = match (in_metric, peel.moments) {
            (true, _) => {
                let error = ((done.total - done.kept).max(0.0) / done.total).sqrt();
                format!(
                    "{ranks} of the outputs' energy for {bits:.3} bits per weight: error {error:.2e} on the \
                     inputs that were seen"
                )
            }
            (false, Some(_)) => {
                format!("{ranks} of the energy for {bits:.3} bits per weight, by the weights alone")
            }
            (false, None) => format!("{ranks} of the energy for {bits:.3} bits per weight"),
        };
        let passed = Remark::new(RemarkKind::Passed, peel.site, text);
        peel.remarks.push(passed);
        if let Some(energy) = self.energy.filter(|_| !done.reached) {
            let text = format!(
                "holds {held} of the energy with ranks up to {}, not the {} asked for; raise max_rank",
                done.low_rank.max_rank(),
                percent(energy)
            );
            peel.remarks.push(Remark::missed(peel.site, text));
        }
        if let [one] = blocks.as_slice()
            && one.rows == peel.rows
        {
            let text = "no level below the first was worth its bytes; `lowrank` does the same";
            peel.remarks.push(Remark::analysis(peel.site, text));
        }
    }
}

impl MatrixPass for Multilevel {
    fn access(&self) -> Access {
        Access::Whole
    }

    fn residual(&self) -> Residual {
        ResidualOption::or_drop(self.residual)
    }

    fn calibration(&self) -> Calibration {
        calibration(self.metric)
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        let (_, most) = self.budget(rows, cols);
        let (entries, sides) = (rows.saturating_mul(cols), rows.saturating_add(cols));
        // The residual's copy, an exact SVD of a small matrix or the sketches of a large one, the
        // factors of every level.
        let exact = match rows.min(cols) {
            short @ ..512 => entries.saturating_mul(3).saturating_add(3 * short * short),
            _ => sides.saturating_mul(most + 32).saturating_mul(5),
        };
        let factors = sides
            .saturating_mul(most)
            .saturating_mul(2 + u64::from(self.levels));
        // What is left, its product with the metric, whitened targets of a level.
        let whitened = match metric_bytes(self.metric, cols) {
            0 => 0,
            moments => entries.saturating_mul(24).saturating_add(moments),
        };
        entries
            .saturating_add(exact)
            .saturating_add(factors)
            .saturating_mul(4)
            .saturating_add(whitened)
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        let (_, most) = self.budget(rows, cols);
        let per_entry = match rows.min(cols) {
            short @ ..512 => 0.25 * short as f64,
            _ => 0.2 * (most + 32) as f64,
        };
        // Fewer levels are tried too, and finer ones decomposed again for every level above.
        per_entry * 12.0 * rows as f64 * cols as f64
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        let sides = rows.saturating_add(cols);
        match self.budget(rows, cols).0 {
            Budget::Bytes(bytes) => bytes as u64,
            // Every level at its largest rank, and what closes the gap.
            Budget::Energy(_) => {
                let level = self.factors.bytes(sides, self.budget(rows, cols).1);
                let blocks = 4u64 << self.levels.min(16);
                let levels = u64::from(self.levels).saturating_add(1);
                level
                    .saturating_mul(levels)
                    .saturating_add(sides.saturating_mul(8))
                    .saturating_add(blocks)
            }
            // Blocks' own rounding of scales comes on top.
            Budget::Rank(rank) => self
                .factors
                .bytes(sides, rank as u64)
                .saturating_add(sides.saturating_mul(8)),
        }
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let (rows, cols) = (peel.rows, peel.cols);
        if rows.min(cols) < 2 {
            let text = format!("a {rows}x{cols} matrix has no rank to lose");
            peel.remarks.push(Remark::missed(peel.site, text));
            return Ok(Peeled::nothing());
        }
        let (budget, most) = self.budget(rows as u64, cols as u64);
        let options = SvdOptions {
            seed: peel.seed,
            ..SvdOptions::default()
        };
        let levels = Levels {
            depth: self.levels.max(1) as usize - 1,
            budget,
            max_rank: most as usize,
            format: self.factors.format(),
        };
        let moment = moment_of(peel, self.metric)?;
        let done = match &moment {
            Some(h) => {
                let shape = (rows, cols);
                let (done, conditioning) =
                    whitened_levels(peel.residual, shape, h, self.damp, &levels, &options)?;
                say_conditioning(peel, &conditioning);
                done
            }
            None => {
                decompose(peel.residual, rows, cols, &levels, &options).map_err(PassError::new)?
            }
        };
        if done.low_rank.max_rank() == 0 {
            let text = "nothing taken: the residual is zero, or the budget (or energy asked for) is below one rank";
            peel.remarks.push(Remark::missed(peel.site, text));
            return Ok(Peeled::nothing());
        }
        done.low_rank.subtract_from(peel.residual);
        self.remark(peel, &done, moment.is_some());
        let term = TermData::LowRank(done.low_rank);
        Ok(Peeled {
            note: term.label(),
            term: Some(term),
        })
    }
}

pass_entry!("multilevel", Multilevel, Multilevel::build);
