//! Takes the entries that hurt a quantizer most, or whole columns, into a sparse f16 term.
//!
//! A group's scale follows its largest entry, so a few large ones cost all their neighbours
//! precision. Where a quantizer follows, entries are taken by what it gains from their absence;
//! else by magnitude. With statistics (`--calib`) an entry's error counts by what it costs on the inputs
//! that were seen: once the others have made up for it where the quantizer has error feedback, else by
//! itself. Whole columns, and what is taken by magnitude, are chosen by the weights alone.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { sparse(@w.values, @w.columns, @w.offsets, nnz=1659) + dense(@rest) }`, or
//! `columns(@w.columns, @w.values, count=3)`; the rest goes to the next pass, and is dropped where
//! none follows (`residual=keep` stores it).
//!
//! Cost: a selection in linear time; by saving, five to ten times the quantizer's own, with statistics
//! twice that and in³ / 2. An entry takes 4
//! bytes (6 above 65536 columns), a row 4, a column 2 per row.
//! Source: T. Dettmers et al., "SpQR", arXiv 2306.03078; S. Kim et al., "SqueezeLLM", arXiv
//! 2306.07629.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use super::shared::factors::{ResidualOption, percent};
use super::shared::gptq::say_conditioning;
use super::shared::metric::{DAMP, MetricOption, calibration, check_damp, metric_bytes, moment_of};
use crate::numeric::Group;
use crate::numeric::Sparse;
use crate::numeric::hessian::{Metric, Order, outliers};
use crate::numeric::matrix::norm2;
use crate::numeric::sparse::{
    column_energies, column_savings, density_count, select_above, select_by_magnitude,
    select_by_saving, select_columns,
};
use crate::pass::terms::TermData;
use crate::pass::{
    Access, Calibration, MatrixPass, Pass, PassError, Peel, Peeled, Quantizer, Remark, RemarkKind,
    Residual,
};

/// Options of `outlier`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// Share of the entries (of the columns) that is taken, as a fraction (0.005) or in percent
    /// (0.5%). Default: 0.5%, or 1% of the columns, where no other measure is given.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub density: Option<f64>,
    /// Instead of a density: entries (columns) above so many root mean squares of the matrix.
    #[schemars(range(min = 0.0))]
    pub sigma: Option<f64>,
    /// Instead of a density: so many entries (columns).
    #[schemars(range(min = 1))]
    pub count: Option<u64>,
    /// What is taken first: the largest, or what spares the following quantizer most squared error.
    /// Default: `saving` where a quantizer follows, else `magnitude`.
    pub by: Option<ByOption>,
    /// Take whole columns.
    pub columns: bool,
    /// What becomes of the rest. Default: kept where a later pass takes it up, else dropped.
    pub residual: Option<ResidualOption>,
    /// What counts as error where entries are taken by saving: that of the outputs on the inputs that
    /// were seen (`inputs`, which needs `--calib`) or that of the weights. Default: `inputs` where there
    /// are statistics.
    pub metric: Option<MetricOption>,
    /// With `inputs`: damping of the second moments, as a fraction of their mean diagonal.
    pub damp: f64,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            density: None,
            sigma: None,
            count: None,
            by: None,
            columns: false,
            residual: None,
            metric: None,
            damp: DAMP,
        }
    }
}

/// What is taken first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ByOption {
    /// The largest.
    Magnitude,
    /// What spares the following quantizer most squared error.
    Saving,
}

const DENSITY: f64 = 0.005;
const COLUMN_DENSITY: f64 = 0.01;

impl Outlier {
    fn build(self) -> Result<Pass, PassError> {
        let measures = [
            self.density.is_some(),
            self.sigma.is_some(),
            self.count.is_some(),
        ];
        if measures.into_iter().filter(|&given| given).count() > 1 {
            let text = "give one of `density`, `sigma` and `count`, not several";
            return Err(PassError::new(text));
        }
        if self.sigma.is_some() && self.by == Some(ByOption::Saving) {
            let text = "`sigma` selects by magnitude; give a density with `by=saving`";
            return Err(PassError::new(text));
        }
        if self.metric == Some(MetricOption::Inputs) && self.chooses_by_weights() {
            let text =
                "`metric=inputs` is for entries by saving, not for columns, `sigma` or magnitude";
            return Err(PassError::new(text));
        }
        check_damp(self.damp)?;
        Ok(Pass::Matrix(Box::new(self)))
    }

    /// Whether nothing but the weights can say what is taken.
    fn chooses_by_weights(&self) -> bool {
        self.columns || self.sigma.is_some() || self.by == Some(ByOption::Magnitude)
    }

    /// Share that is taken of `n` entries or columns, unless sigma decides.
    fn share(&self, n: usize) -> f64 {
        let default = if self.columns {
            COLUMN_DENSITY
        } else {
            DENSITY
        };
        match self.count {
            Some(count) => (count as f64 / n.max(1) as f64).min(1.0),
            None => self.density.unwrap_or(default),
        }
    }

    /// The quantizer to select for, if selection is by saving.
    fn saving_for(&self, peel: &mut Peel<'_>) -> Option<Quantizer> {
        let by = self.by.or(self.sigma.map(|_| ByOption::Magnitude));
        if by == Some(ByOption::Saving) && peel.next.is_none() {
            let text = "no quantizer follows that could gain; taken by magnitude";
            peel.remarks.push(Remark::missed(peel.site, text));
        }
        peel.next.filter(|_| by != Some(ByOption::Magnitude))
    }

    fn entries(&self, peel: &mut Peel<'_>) -> Result<Vec<usize>, PassError> {
        let share = self.share(peel.residual.len());
        let chosen = match (self.sigma, self.saving_for(peel)) {
            (Some(sigma), _) => Ok(select_above(peel.residual, sigma * rms(peel.residual))),
            (None, None) => select_by_magnitude(peel.residual, share),
            (None, Some(q)) => {
                let (rows, cols) = (peel.rows, peel.cols);
                if let Some(costs) = self.costs(peel, q)? {
                    let (scheme, group, method) = (q.scheme, q.group, q.method);
                    let found =
                        outliers(peel.residual, rows, &costs, share, scheme, group, method)?;
                    let text = match q.feedback {
                        true => {
                            "taken by what they save on the inputs that were seen, behind error feedback"
                        }
                        false => "taken by what they save on the inputs that were seen",
                    };
                    peel.remarks.push(Remark::analysis(peel.site, text));
                    return Ok(found);
                }
                select_by_saving(
                    peel.residual,
                    rows,
                    cols,
                    share,
                    q.scheme,
                    q.group,
                    q.method,
                )
            }
        };
        chosen.map_err(PassError::new)
    }

    /// What a squared error of each input costs, where statistics say so.
    fn costs(&self, peel: &mut Peel<'_>, q: Quantizer) -> Result<Option<Vec<f64>>, PassError> {
        let by_rows = q.group != Group::Column;
        let Some(h) = moment_of(peel, self.metric)?.filter(|_| by_rows) else {
            return Ok(None);
        };
        let made = Metric::with_feedback(&h, peel.cols, self.damp, Order::Natural)?;
        let (metric, feedback, conditioning) = made;
        say_conditioning(peel, &conditioning);
        Ok(Some(match q.feedback {
            true => feedback.leave_one_out(),
            false => metric.diagonal(),
        }))
    }

    fn whole_columns(&self, peel: &mut Peel<'_>) -> Result<Vec<u32>, PassError> {
        let (rows, cols) = (peel.rows, peel.cols);
        let scores = match self.saving_for(peel) {
            Some(q) => column_savings(peel.residual, rows, cols, q.scheme, q.group, q.method),
            None => column_energies(peel.residual, rows, cols),
        };
        let scores = scores.map_err(PassError::new)?;
        let count = match self.sigma {
            Some(sigma) => {
                let threshold = (sigma * rms(peel.residual)).powi(2) * rows as f64;
                scores.iter().filter(|&&energy| energy > threshold).count()
            }
            None => {
                let least = usize::from(self.density.is_none());
                let share = density_count(self.share(cols), cols).map_err(PassError::new)?;
                share.max(least)
            }
        };
        Ok(select_columns(&scores, count))
    }
}

/// Root mean square of the entries.
fn rms(residual: &[f32]) -> f64 {
    (norm2(residual) / residual.len().max(1) as f64).sqrt()
}

impl MatrixPass for Outlier {
    fn access(&self) -> Access {
        Access::Whole
    }

    fn residual(&self) -> Residual {
        ResidualOption::or_drop(self.residual)
    }

    fn calibration(&self) -> Calibration {
        match self.chooses_by_weights() {
            true => Calibration::Unused,
            false => calibration(self.metric),
        }
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        let entries = rows.saturating_mul(cols);
        let share = self.share(usize::try_from(entries).unwrap_or(usize::MAX));
        // A key per entry by magnitude; by saving, offers of 16 bytes: four times the share and two
        // of each group; then flat indices.
        let per_entry = 4.0f64.max(16.0 * (4.0 * share + 0.1).min(1.0)) + 8.0 * share;
        let moments = match self.chooses_by_weights() {
            true => 0,
            false => metric_bytes(self.metric, cols),
        };
        ((entries as f64 * per_entry) as u64).saturating_add(moments)
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        let per_entry = match (self.by, self.sigma) {
            (Some(ByOption::Magnitude), _) | (_, Some(_)) => 3.0,
            // Between what a quantizer by absmax costs to ask and one by least squares.
            _ => 27.0,
        };
        per_entry * rows as f64 * cols as f64
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        let of = |n: u64| match self.sigma {
            // By Chebyshev's inequality.
            Some(sigma) => ((n as f64 / (sigma * sigma).max(1.0)) as u64).saturating_add(1),
            None => ((self.share(usize::try_from(n).unwrap_or(usize::MAX)) * n as f64) as u64)
                .saturating_add(1),
        };
        if self.columns {
            return of(cols).saturating_mul(rows.saturating_mul(2).saturating_add(4));
        }
        let entry = if cols > 65536 { 6 } else { 4 };
        let entries = of(rows.saturating_mul(cols)).saturating_mul(entry);
        entries.saturating_add(rows.saturating_add(1).saturating_mul(4))
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let (rows, cols) = (peel.rows, peel.cols);
        let before = norm2(peel.residual);
        let sparse = if self.columns {
            let chosen = self.whole_columns(peel)?;
            Sparse::take_columns(peel.residual, rows, cols, &chosen)
        } else {
            let chosen = self.entries(peel)?;
            Sparse::take(peel.residual, rows, cols, &chosen)
        };
        let sparse = sparse.map_err(PassError::new)?;
        if sparse.nnz() == 0 {
            let text = match self.sigma {
                Some(sigma) => format!("nothing lies above {sigma} root mean squares"),
                None => "nothing taken: the share is below one, or nothing would be saved".into(),
            };
            peel.remarks.push(Remark::missed(peel.site, text));
            return Ok(Peeled::nothing());
        }
        let held = percent(1.0 - norm2(peel.residual) / before.max(f64::MIN_POSITIVE));
        let share = percent(sparse.nnz() as f64 / (rows * cols) as f64);
        let bits = 8.0 * sparse.bytes() as f64 / (rows * cols) as f64;
        let text = format!(
            "{share} of the entries hold {held} of the energy for {bits:.3} bits per weight"
        );
        let passed = Remark::new(RemarkKind::Passed, peel.site, text);
        peel.remarks.push(passed);
        let term = TermData::Sparse(sparse);
        Ok(Peeled {
            note: if self.columns { term.label() } else { share },
            term: Some(term),
        })
    }
}

pass_entry!("outlier", Outlier, Outlier::build);
