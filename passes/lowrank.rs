//! Truncated SVD of what is left, flat or over a hierarchy of blocks.
//!
//! Trained matrices spread little of their energy over most directions; the few that hold much are
//! cheaper as two thin factors, and what is left is easier to quantize. With `depth` the matrix is
//! bisected along its longer side first and every leaf gets factors of its own, as in HLRC, with more
//! rank where it holds more energy: that follows structure that is local.
//!
//! With statistics (`--calib`) the factors are those that leave the least error of the outputs on the
//! inputs that were seen, SVD(W H^½) H^-½ with H = Σ x xᵀ; leaves are fitted by turns to what the others
//! leave of the outputs. Behind a
//! quantizer (`int4{method=gptq},lowrank`) they take up what that has lost, where they hold more than in
//! front of it; `refine` then lets both settle.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { low_rank(int8(@w.u, @w.u_scales), int8(@w.v, @w.v_scales), r=32) +
//! dense(@rest) }`; the rest goes to the next pass, and is dropped where none follows
//! (`residual=keep` stores it).
//!
//! Cost: exact, one SVD of every leaf; randomized, 2 + 2·power_iterations products with a matrix of
//! rank + oversampling columns; in a metric, in³ / 3 and 2 · out · in² more. Memory: the matrix in f32 and
//! the sketches; in a metric, the matrix again and in² floats.
//! Source: N. Halko, P.-G. Martinsson, J. Tropp, "Finding structure with randomness", SIAM Review
//! 53 (2011); the metric as in C. Zhang et al., "QERA", arXiv 2410.06040.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use super::shared::factors::{FactorsOption, ResidualOption, percent};
use super::shared::gptq::say_conditioning;
use super::shared::metric::{DAMP, MetricOption, calibration, check_damp, metric_bytes, moment_of};
use crate::numeric::hessian::whitened_leaves;
use crate::numeric::lowrank::hierarchy::{Hierarchy, Ranks, decompose};
use crate::numeric::lowrank::svd::EXACT_BELOW;
use crate::numeric::lowrank::{Block, Decomposition, Method, Options as SvdOptions, Rank, Side};
use crate::pass::terms::TermData;
use crate::pass::{
    Access, Calibration, MatrixPass, Pass, PassError, Peel, Peeled, Remark, RemarkKind, Residual,
};

/// Options of `lowrank`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lowrank {
    /// Rank of a leaf, the mean of all or each (`ranks`). Where neither this nor `energy` is given: a sixteenth of the leaf's
    /// shorter side, rounded up to a multiple of 8, at most 64.
    #[schemars(range(min = 1))]
    pub rank: Option<u32>,
    /// Instead of a rank: the least that holds this share of the energy, as a fraction (0.9) or in
    /// percent (90%).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub energy: Option<f64>,
    /// Upper bound of the rank under `energy`. Default: where factors have as many entries as the
    /// leaf; half of that with `depth`.
    #[schemars(range(min = 1))]
    pub max_rank: Option<u32>,
    /// How often the matrix is bisected; 0 is a plain SVD. Bisection stops where a side is at most
    /// twice the largest rank.
    #[schemars(range(max = 16))]
    pub depth: u32,
    /// With `depth`: how ranks are given to leaves.
    pub ranks: RanksOption,
    /// How factors are stored. `int8` leaves no measurable error behind; `int4` adds a percent of
    /// what the rank leaves.
    pub factors: FactorsOption,
    /// What becomes of the rest. Default: kept where a later pass takes it up, else dropped.
    pub residual: Option<ResidualOption>,
    /// Which algorithm: `auto` is exact below 512 rows or columns and for ranks near full.
    pub method: MethodOption,
    /// Columns of the randomized sketch beyond the rank.
    #[schemars(range(max = 4096))]
    pub oversampling: u32,
    /// Power iterations of the randomized algorithm.
    #[schemars(range(max = 16))]
    pub power_iterations: u32,
    /// In which metric: of the outputs on the inputs that were seen (`inputs`, which needs `--calib`) or
    /// of the weights. Default: `inputs` where there are statistics.
    pub metric: Option<MetricOption>,
    /// With `inputs`: damping of the second moments, as a fraction of their mean diagonal.
    pub damp: f64,
}

/// How ranks are given to leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RanksOption {
    /// To where they hold most energy per byte, for the bytes of even ones; none above twice the even
    /// rank.
    #[default]
    Energy,
    /// The same to every leaf, or what holds the share of its own energy.
    Even,
}

/// Which algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MethodOption {
    /// Exact below 512 rows or columns and for ranks near full, else randomized.
    #[default]
    Auto,
    /// All singular values, then cut.
    Exact,
    /// Range finder with a random sketch.
    Randomized,
}

impl Default for Lowrank {
    fn default() -> Self {
        let svd = SvdOptions::default();
        Self {
            rank: None,
            energy: None,
            max_rank: None,
            depth: 0,
            ranks: RanksOption::Energy,
            factors: FactorsOption::Int8,
            residual: None,
            method: MethodOption::Auto,
            oversampling: svd.oversampling as u32,
            power_iterations: svd.power_iterations as u32,
            metric: None,
            damp: DAMP,
        }
    }
}

impl Lowrank {
    fn build(self) -> Result<Pass, PassError> {
        if self.rank.is_some() && (self.energy.is_some() || self.max_rank.is_some()) {
            return Err(PassError::new(
                "give `rank`, or `energy` with `max_rank`, not both",
            ));
        }
        if self.max_rank.is_some() && self.energy.is_none() {
            return Err(PassError::new("`max_rank` bounds `energy`; give that too"));
        }
        check_damp(self.damp)?;
        Ok(Pass::Matrix(Box::new(self)))
    }

    /// The rank asked for, leaves of a `[rows, cols]` matrix in mind.
    fn rank(&self, rows: u64, cols: u64) -> Rank {
        let halvings = self.depth.div_ceil(2);
        let short = rows.min(cols);
        let leaf = (short >> halvings).max(1);
        if let Some(energy) = self.energy {
            let even = rows as u128 * cols as u128 / (rows as u128 + cols as u128).max(1);
            let even = (even >> halvings) as u64;
            let bound = if self.depth == 0 { even } else { even / 2 };
            let max_rank = self.max_rank.map_or(bound.max(1), u64::from).min(leaf);
            return Rank::Energy {
                energy,
                max_rank: max_rank as usize,
            };
        }
        let default = (leaf / 16).next_multiple_of(8).clamp(8, 64);
        let rank = self.rank.map_or(default, u64::from).min(short);
        Rank::Fixed(rank as usize)
    }

    fn svd_options(&self, seed: u64) -> SvdOptions {
        SvdOptions {
            method: match self.method {
                MethodOption::Auto => Method::Auto,
                MethodOption::Exact => Method::Exact,
                MethodOption::Randomized => Method::Randomized,
            },
            oversampling: self.oversampling as usize,
            power_iterations: self.power_iterations as usize,
            seed,
            threads: 1,
        }
    }

    /// The largest rank that a leaf may get.
    fn widest(&self, rows: u64, cols: u64) -> u64 {
        let shared = self.depth > 0 && self.ranks == RanksOption::Energy && self.energy.is_none();
        self.rank(rows, cols).max() as u64 * if shared { 2 } else { 1 }
    }

    /// Whether a leaf of this shorter side is decomposed exactly, by a sketch of this width.
    fn is_exact(&self, short: u64, width: u64) -> bool {
        match self.method {
            MethodOption::Exact => true,
            MethodOption::Randomized => width >= short,
            MethodOption::Auto => short < EXACT_BELOW as u64 || width > short / 4 * 3,
        }
    }

    fn remark(&self, peel: &mut Peel<'_>, done: &Decomposition, in_metric: bool) {
        let (term, site) = (&done.low_rank, peel.site);
        let (most, short) = (term.max_rank(), peel.rows.min(peel.cols));
        let held = percent(done.kept / done.total);
        if let Some(rank) = self.rank.filter(|&rank| rank as usize > short) {
            let text = format!("rank {rank} is above the shorter side; {short} is taken");
            peel.remarks.push(Remark::analysis(site, text));
        }
        if let Some(energy) = self.energy.filter(|_| !done.reached) {
            let text = format!(
                "holds {held} of the energy at rank {most}, not the {} asked for; raise max_rank",
                percent(energy)
            );
            peel.remarks.push(Remark::missed(site, text));
        }
        let (leaves, full) = (term.blocks.len(), 1usize << self.depth.min(16));
        if leaves < full {
            let text = format!("{leaves} leaves instead of {full}: sides reach twice the rank");
            peel.remarks.push(Remark::analysis(site, text));
        }
        let bits = 8.0 * term.bytes() as f64 / (peel.rows * peel.cols) as f64;
        let ranks = match leaves {
            1 => format!("rank {most} holds"),
            _ => format!("ranks up to {most} hold"),
        };
        let text = match (in_metric, peel.moments) {
            (true, _) => {
                let error = ((done.total - done.kept).max(0.0) / done.total).sqrt();
                format!(
                    "{ranks} {held} of the outputs' energy for {bits:.3} bits per weight: error {error:.2e} \
                     on the inputs that were seen"
                )
            }
            (false, Some(_)) => format!(
                "{ranks} {held} of the energy for {bits:.3} bits per weight, by the weights alone"
            ),
            (false, None) => format!("{ranks} {held} of the energy for {bits:.3} bits per weight"),
        };
        let passed = Remark::new(RemarkKind::Passed, site, text);
        peel.remarks.push(passed);
    }
}

/// Whether bytes of factors can be counted without overflow.
fn sides_fit(rows: u64, cols: u64, rank: u64) -> bool {
    rows.saturating_add(cols).saturating_mul(rank.max(1)) < 1 << 48
}

impl MatrixPass for Lowrank {
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
        let rank = self.widest(rows, cols);
        let width = rank + u64::from(self.oversampling);
        let short = rows.min(cols);
        let exact = self.is_exact(short, width);
        // Randomized: four sketches of each side. Exact: the matrix twice, both factors, the
        // small problem. Then the factors in f32, twice.
        let sides = rows.saturating_add(cols);
        let svd = match exact && self.depth == 0 {
            true => rows
                .saturating_mul(cols)
                .saturating_mul(3)
                .saturating_add(short.saturating_mul(short).saturating_mul(3)),
            false => sides.saturating_mul(width).saturating_mul(5),
        };
        let leaves = 1u64 << self.depth.div_ceil(2).min(16);
        let factors = sides.saturating_mul(rank).saturating_mul(2 * leaves);
        // Leaves: what is left, its product with the metric and their targets besides.
        let copies = if self.depth == 0 { 12 } else { 20 };
        let whitened = match metric_bytes(self.metric, cols) {
            0 => 0,
            moments => rows
                .saturating_mul(cols)
                .saturating_mul(copies)
                .saturating_add(moments),
        };
        svd.saturating_add(factors)
            .saturating_mul(4)
            .saturating_add(whitened)
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        let width = self.widest(rows, cols) + u64::from(self.oversampling);
        let short = rows.min(cols) >> self.depth.div_ceil(2);
        let per_entry = match self.is_exact(short, width) {
            true => 0.25 * short as f64,
            false => 0.05 * (2 + 2 * self.power_iterations) as f64 * width as f64,
        };
        per_entry * rows as f64 * cols as f64
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        let rank = self.rank(rows, cols).max() as u64;
        // Exact where it can be, so that a target wastes none.
        if self.depth == 0 && self.energy.is_none() && sides_fit(rows, cols, rank) {
            let block = Block {
                row0: 0,
                rows: rows as usize,
                col0: 0,
                cols: cols as usize,
                rank: rank as usize,
            };
            let format = self.factors.format();
            return (format.bytes(Side::U, &block) + format.bytes(Side::V, &block)) as u64;
        }
        let leaves = 1u64 << self.depth.div_ceil(2).min(16);
        self.factors
            .bytes(rows.saturating_add(cols), rank.saturating_mul(leaves))
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let (rows, cols) = (peel.rows, peel.cols);
        if rows.min(cols) < 2 {
            let text = format!("a {rows}x{cols} matrix has no rank to lose");
            peel.remarks.push(Remark::missed(peel.site, text));
            return Ok(Peeled::nothing());
        }
        let rank = self.rank(rows as u64, cols as u64);
        let options = self.svd_options(peel.seed);
        let hierarchy = Hierarchy {
            depth: self.depth as usize,
            rank,
            ranks: match self.ranks {
                RanksOption::Energy => Ranks::ByEnergy,
                RanksOption::Even => Ranks::Even,
            },
            format: self.factors.format(),
        };
        let moment = moment_of(peel, self.metric)?;
        let done = match &moment {
            Some(h) => {
                let (shape, damp) = ((rows, cols), self.damp);
                let (done, conditioning) =
                    whitened_leaves(peel.residual, shape, h, damp, &hierarchy, &options)?;
                say_conditioning(peel, &conditioning);
                done
            }
            None => decompose(peel.residual, rows, cols, &hierarchy, &options)
                .map_err(PassError::new)?,
        };
        if done.low_rank.max_rank() == 0 {
            let text = "nothing is left to factor: the residual is zero, or the energy asked for";
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

pass_entry!("lowrank", Lowrank, Lowrank::build);
