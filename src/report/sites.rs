//! What happened to each matrix: bytes, bits per weight, errors, FLOPs.

use serde::{Deserialize, Serialize};

use super::number;
use super::parts::Parts;
use crate::ir::site::Site;
use crate::ir::{Role, Term};
use crate::weights::DType;

/// One step: a pass on a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The pass.
    pub pass: String,
    /// The term that it made, in short: `int4`, `r64`, `737 outliers`; empty for none.
    pub term: String,
    /// Bytes of that term, everything counted.
    pub bytes: u64,
    /// ‖W − Σ terms so far‖ / ‖W‖, Frobenius; 0 for a zero matrix.
    #[serde(deserialize_with = "number::or_nan")]
    pub rel_error: f64,
}

/// How a rewritten linear is best computed for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// The terms as they are; no low-rank term.
    Direct,
    /// Through the factors: V x, then U (V x).
    Factors,
    /// The product U V once, then as a dense matrix: rank × (out + in) ≥ out × in.
    Materialised,
}

/// One matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteReport {
    /// Name of the site.
    pub name: String,
    /// What it is in the model.
    pub roles: Vec<Role>,
    /// `[out, in]`
    pub shape: [u64; 2],
    /// Element type of the source.
    pub source_dtype: String,
    /// Parameters of the source: out × in.
    pub params_before: u64,
    /// Stored numbers after: entries of factors, values of sparse terms, codes; scales not counted.
    pub params_after: u64,
    /// Bytes of the source.
    pub bytes_before: u64,
    /// Bytes of all terms.
    pub bytes_after: u64,
    /// Those bytes by what they hold; nothing in reports of earlier versions.
    #[serde(default)]
    pub parts: Parts,
    /// 8 × bytes after / (out × in).
    #[serde(deserialize_with = "number::or_nan")]
    pub bits_per_weight: f64,
    /// What each pass did, in order.
    pub steps: Vec<StepReport>,
    /// Relative error of what is stored.
    #[serde(deserialize_with = "number::or_nan")]
    pub rel_error: f64,
    /// Multiplications and additions for one token through the source: 2 × out × in.
    pub flops_before: u64,
    /// The same through what is stored, on the path chosen.
    pub flops_after: u64,
    /// The path chosen.
    pub path: Path,
    /// Why the source was kept although passes ran; absent where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverted: Option<String>,
}

impl SiteReport {
    /// The report of a site whose passes have run; bytes and costs are still to be filled in.
    pub fn begin(site: &Site, dtype: DType, rel_error: f64) -> Self {
        let params = site.rows.saturating_mul(site.cols);
        Self {
            name: site.name.clone(),
            roles: site.roles.clone(),
            shape: [site.rows, site.cols],
            source_dtype: dtype.to_string(),
            params_before: params,
            params_after: params,
            bytes_before: 0,
            bytes_after: 0,
            parts: Parts::default(),
            bits_per_weight: f64::from(dtype.bits()),
            steps: Vec::new(),
            rel_error,
            flops_before: params.saturating_mul(2),
            flops_after: params.saturating_mul(2),
            path: Path::Direct,
            reverted: None,
        }
    }

    /// The source was kept after all.
    pub fn revert(&mut self, why: &str) {
        self.reverted = Some(why.to_string());
        self.bytes_after = self.bytes_before;
        self.rel_error = 0.0;
        self.bits_per_weight = 8.0 * self.bytes_before as f64 / self.params_before.max(1) as f64;
    }

    /// Bytes before over bytes after.
    pub fn ratio(&self) -> f64 {
        self.bytes_before as f64 / self.bytes_after.max(1) as f64
    }
}

/// Numbers stored by a term of an `[out, in]` matrix, and FLOPs for one token through it.
pub fn term_cost(term: &Term, out: u64, inp: u64) -> (u64, u64, Path) {
    let dense = out.saturating_mul(inp);
    match term {
        Term::Dense(_) | Term::Quant(_) | Term::Trellis(_) | Term::Custom(_) => {
            (dense, dense.saturating_mul(2), Path::Direct)
        }
        Term::Sparse(s) => (s.nnz, s.nnz.saturating_mul(2), Path::Direct),
        Term::Columns(c) => {
            let values = c.count.saturating_mul(out);
            (values, values.saturating_mul(2), Path::Direct)
        }
        Term::LowRank(l) => {
            let params = l.blocks.iter().map(|b| b.params() as u64).sum::<u64>();
            if params >= dense {
                (params, dense.saturating_mul(2), Path::Materialised)
            } else {
                (params, params.saturating_mul(2), Path::Factors)
            }
        }
    }
}

/// The same for a sum of terms.
pub fn terms_cost(terms: &[Term], out: u64, inp: u64) -> (u64, u64, Path) {
    let mut total = (0u64, 0u64, Path::Direct);
    for term in terms {
        let (params, flops, path) = term_cost(term, out, inp);
        total.0 = total.0.saturating_add(params);
        total.1 = total.1.saturating_add(flops);
        if path != Path::Direct {
            total.2 = path;
        }
    }
    total
}
