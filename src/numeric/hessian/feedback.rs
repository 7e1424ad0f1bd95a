//! Which errors of columns done already are made up for by a column still to do.
//!
//! With `H = L D Lᵀ`, `L` unit lower triangular, the objective of a row `e` is
//! `Σ_j D_j (e L)_j²`, and `(e L)_j` holds only errors of columns `j` and later.
//! Going from the last column to the first, column `j` is rounded at the target
//! `w_j + Σ_{k>j} e_k L_kj`: what remains of `(e L)_j` is its rounding error
//! alone. This is LDLQ (Chee et al., "QuIP", 2023), which they show to be what
//! GPTQ (Frantar et al., 2023) computes from the inverse of `H`; here no inverse
//! is needed. The same holds for blocks of columns.

use super::factor::{Lower, factor_damped};
use super::{HessianError, Metric};
use faer::linalg::triangular_solve::{
    solve_unit_lower_triangular_in_place, solve_unit_upper_triangular_in_place,
};
use faer::{Mat, MatMut, MatRef, Par};

/// The order in which columns are quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// The last column first.
    Natural,
    /// The columns of largest second moment first ("act-order").
    ///
    /// What they leave is made up for by all others.
    #[default]
    Activation,
}

/// The factors `H = L D Lᵀ` of a metric, in an order of its inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Feedback {
    n: usize,
    /// Position to input; positions are quantized from the last to the first.
    inputs: Vec<u32>,
    /// `L` `[n, n]`, row-major, by positions; zero above the diagonal.
    lower: Vec<f32>,
    /// `D`, by positions.
    variances: Vec<f64>,
}

impl Feedback {
    /// Factors a metric.
    ///
    /// # Errors
    /// If the permuted metric turns out not to be positive definite; its damping
    /// was then at the limit.
    ///
    /// # Cost
    /// `n³ / 3` multiply-adds in `f64` (`f32` above 4096 inputs), `4 n²` bytes kept.
    pub fn new(metric: &Metric, order: Order) -> Result<Self, HessianError> {
        Self::damped(&mut metric.clone(), order).map(|(feedback, _)| feedback)
    }

    /// Also raises the damping of `metric` and says how often it was factored.
    pub(super) fn damped(metric: &mut Metric, order: Order) -> Result<(Self, usize), HessianError> {
        let mut inputs: Vec<usize> = (0..metric.n).collect();
        if order == Order::Activation {
            // Stable: of equal inputs, the one with the lower index comes first.
            inputs.sort_by(|&a, &b| metric.diagonal[b].total_cmp(&metric.diagonal[a]));
            inputs.reverse();
        }
        let (lower, tries) = factor_damped(metric, &inputs)?;
        Ok((Self::from_lower(&lower, &inputs), tries))
    }

    fn from_lower(factor: &Lower, inputs: &[usize]) -> Self {
        let n = inputs.len();
        let pivots: Vec<f64> = (0..n).map(|j| factor.at(j, j)).collect();
        let mut lower = vec![0f32; n * n];
        // By tiles: the factor lies by columns, `lower` by rows.
        for i0 in (0..n).step_by(TILE) {
            for j0 in (0..=i0).step_by(TILE) {
                for i in i0..(i0 + TILE).min(n) {
                    let row = &mut lower[i * n..][..n];
                    for j in j0..(j0 + TILE).min(i + 1) {
                        row[j] = (factor.at(i, j) / pivots[j]) as f32;
                    }
                }
            }
        }
        Feedback {
            n,
            inputs: inputs.iter().map(|&i| i as u32).collect(),
            lower,
            variances: pivots.iter().map(|p| p * p).collect(),
        }
    }

    /// Number of inputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The input at each position; positions are quantized from the last to the first.
    pub fn inputs(&self) -> &[u32] {
        &self.inputs
    }

    /// `L` `[n, n]`, row-major, by positions.
    pub fn lower(&self) -> &[f32] {
        &self.lower
    }

    /// Conditional variances: what a unit error at each position costs.
    ///
    /// The variance of an input given those at lower positions, summed over
    /// tokens.
    pub fn variances(&self) -> &[f64] {
        &self.variances
    }

    /// [`Feedback::variances`] by input.
    pub fn variances_by_input(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.n];
        for (&input, &d) in self.inputs.iter().zip(&self.variances) {
            out[input as usize] = d;
        }
        out
    }

    /// `1 / [H⁻¹]_jj` by input: what a unit error costs once all others make up for it.
    ///
    /// The variance of an input given all the others, summed over tokens.
    ///
    /// # Cost
    /// `n³ / 6` multiply-adds in `f32`.
    pub fn leave_one_out(&self) -> Vec<f64> {
        let n = self.n;
        let lower = MatRef::from_row_major_slice(&self.lower, n, n);
        let mut out = vec![0.0; n];
        // Columns of L⁻¹, some at a time: [H⁻¹]_jj = Σ_i (L⁻¹)_ij² / D_i.
        for j0 in (0..n).step_by(TILE) {
            let (width, rest) = (TILE.min(n - j0), n - j0);
            let mut columns = Mat::<f32>::zeros(rest, width);
            (0..width).for_each(|j| columns[(j, j)] = 1.0);
            let l = lower.submatrix(j0, j0, rest, rest);
            solve_unit_lower_triangular_in_place(l, columns.as_mut(), Par::Seq);
            for j in 0..width {
                let terms = columns.col_as_slice(j).iter().zip(&self.variances[j0..]);
                let inverse: f64 = terms.map(|(x, d)| f64::from(*x) * f64::from(*x) / d).sum();
                out[self.inputs[j0 + j] as usize] = 1.0 / inverse;
            }
        }
        out
    }

    /// The factors by blocks of `width` columns, for [`ldlq`](super::ldlq()).
    pub fn blocks(self, width: usize) -> Blocks {
        Blocks::new(self, width.max(1))
    }
}

/// Rows and columns copied at a time.
const TILE: usize = 64;

/// Block factors: `L` has identities for diagonal blocks, `D` is block diagonal.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    n: usize,
    width: usize,
    inputs: Vec<u32>,
    /// Block `L` `[n, n]`, row-major; the diagonal blocks are left zero.
    lower: Vec<f32>,
    /// `D_j` `[width, width]` of each block, row-major; the last may be smaller.
    variances: Vec<Vec<f64>>,
}

impl Blocks {
    fn new(feedback: Feedback, width: usize) -> Self {
        let Feedback {
            n,
            inputs,
            mut lower,
            variances: d,
        } = feedback;
        let mut variances = Vec::with_capacity(n.div_ceil(width));
        for j0 in (0..n).step_by(width) {
            let w = width.min(n - j0);
            let l = |i: usize, k: usize| {
                if k <= i {
                    f64::from(lower[(j0 + i) * n + j0 + k])
                } else {
                    0.0
                }
            };
            let entry = |i: usize, k: usize| {
                let upto = i.min(k);
                (0..=upto).map(|m| l(i, m) * d[j0 + m] * l(k, m)).sum()
            };
            let block = (0..w * w).map(|at| entry(at / w, at % w)).collect();
            variances.push(block);
            // X · L_jj = L_ij for everything below: (L_jjᵀ) Xᵀ = L_ijᵀ.
            let diagonal = Mat::from_fn(w, w, |i, k| l(i, k) as f32);
            let below = &mut lower[(j0 + w) * n..];
            if !below.is_empty() {
                let rows = below.len() / n;
                let all = MatMut::from_row_major_slice_mut(below, rows, n);
                let columns = all.subcols_mut(j0, w);
                solve_right(&diagonal, columns);
            }
            for i in 0..w {
                lower[(j0 + i) * n + j0..][..w].fill(0.0);
            }
        }
        Blocks {
            n,
            width,
            inputs,
            lower,
            variances,
        }
    }

    /// Number of inputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns of a block; the last may have fewer.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of blocks.
    pub fn count(&self) -> usize {
        self.variances.len()
    }

    /// The input at each position.
    pub fn inputs(&self) -> &[u32] {
        &self.inputs
    }

    /// Block `L` `[n, n]` by positions, without the diagonal blocks.
    pub(super) fn lower(&self) -> &[f32] {
        &self.lower
    }

    /// `D_j` `[w, w]`: an error `e` `[rows, w]` of block `j` costs `tr(e D_j eᵀ)`.
    pub fn variance(&self, block: usize) -> &[f64] {
        &self.variances[block]
    }

    /// Mean of the diagonal of `D_j`: what an uncorrelated unit error costs.
    pub fn energy(&self, block: usize) -> f64 {
        let d = &self.variances[block];
        let w = d.len().isqrt().max(1);
        (0..w).map(|i| d[i * w + i]).sum::<f64>() / w as f64
    }

    /// [`Blocks::energy`] of every block.
    pub fn energies(&self) -> Vec<f64> {
        (0..self.count()).map(|j| self.energy(j)).collect()
    }
}

/// `X ← X · L⁻¹` for a unit lower triangular `L`.
fn solve_right(l: &Mat<f32>, x: MatMut<'_, f32>) {
    // X · L = B is Lᵀ · Xᵀ = Bᵀ.
    solve_unit_upper_triangular_in_place(l.transpose(), x.transpose_mut(), Par::Seq);
}
