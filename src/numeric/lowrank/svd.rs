//! Truncated singular value decomposition, exact or randomized.
//!
//! The randomized method is that of Halko, Martinsson and Tropp, "Finding
//! structure with randomness" (SIAM Review 53, 2011): a range finder with
//! oversampling and power iterations, orthonormalised after every product
//! (algorithm 4.4), then the decomposition of the small projected matrix
//! (algorithm 5.1).

use super::LowRankError;
use super::gemm::product;
use crate::numeric::matrix::MatRef;
use faer::{Mat, MatRef as FaerRef};

/// How many singular values to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rank {
    /// This many, or as many as there are.
    Fixed(usize),
    /// The fewest that hold a fraction of the sum of squares, at most `max_rank`.
    Energy {
        /// Fraction of the sum of squares, 0 to 1.
        energy: f64,
        /// Upper bound of the rank.
        max_rank: usize,
    },
}

impl Rank {
    /// The largest rank that may come out.
    pub fn max(self) -> usize {
        match self {
            Rank::Fixed(rank) => rank,
            Rank::Energy { max_rank, .. } => max_rank,
        }
    }
}

/// Which algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// Exact where the shorter side is below 512 or hardly longer than the
    /// sketch would be wide, else randomized.
    #[default]
    Auto,
    /// All singular values, then cut.
    Exact,
    /// Range finder with oversampling and power iterations.
    Randomized,
}

/// Below this shorter side, [`Method::Auto`] is exact.
pub const EXACT_BELOW: usize = 512;

/// Parameters of the decomposition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Which algorithm.
    pub method: Method,
    /// Columns of the sketch beyond the rank.
    pub oversampling: usize,
    /// Power iterations; one halves the error left by none, more gain little.
    pub power_iterations: usize,
    /// Seed of the sketch.
    pub seed: u64,
    /// Above 1, products run on the current rayon pool; the result is the same.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            method: Method::Auto,
            oversampling: 32,
            power_iterations: 1,
            seed: 0,
            threads: 1,
        }
    }
}

/// A truncated decomposition `a ≈ u · diag(s) · v`.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Left singular vectors `[rows, rank]`, row-major.
    pub u: Vec<f32>,
    /// Singular values, descending.
    pub s: Vec<f32>,
    /// Right singular vectors `[rank, cols]`, row-major.
    pub v: Vec<f32>,
    /// Sum of squares of the matrix.
    pub total: f64,
    /// Sum of squares of the singular values kept.
    pub kept: f64,
    /// Whether the energy asked for was reached (true for fixed ranks).
    pub reached: bool,
}

impl Svd {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.s.len()
    }

    /// Factors `[rows, rank]` and `[rank, cols]`, the second times the singular values.
    pub fn into_factors(mut self) -> (Vec<f32>, Vec<f32>) {
        if self.cols > 0 {
            for (row, s) in self.v.chunks_mut(self.cols).zip(&self.s) {
                row.iter_mut().for_each(|x| *x *= s);
            }
        }
        (self.u, self.v)
    }
}

/// The leading singular triplets of `a` `[rows, cols]`.
///
/// Every column of `u` has its largest entry positive, so signs are determined.
///
/// # Errors
/// Values that aren't finite, an energy outside of 0 to 1.
///
/// # Cost
/// Exact: about `O(rows * cols * min(rows, cols))` with a large constant.
/// Randomized: `2 + 2 * power_iterations` products with a matrix of
/// `rank + oversampling` columns.
pub fn truncated(a: MatRef, rank: Rank, options: &Options) -> Result<Svd, LowRankError> {
    if let Rank::Energy { energy, .. } = rank
        && !(0.0..=1.0).contains(&energy)
    {
        return Err(LowRankError::Energy { energy });
    }
    let total = a.norm2();
    if !total.is_finite() {
        let (row, col) = a.find_not_finite().unwrap_or((0, 0));
        return Err(LowRankError::NotFinite { row, col });
    }
    let short = a.rows().min(a.cols());
    let limit = rank.max().min(short);
    if limit == 0 || total == 0.0 {
        let reached =
            total == 0.0 || matches!(rank, Rank::Fixed(_) | Rank::Energy { energy: 0.0, .. });
        return Ok(cut(a, Triplets::empty(a), rank, total, reached));
    }
    let width = limit.saturating_add(options.oversampling).min(short);
    let exact = match options.method {
        Method::Exact => true,
        Method::Randomized => width == short,
        Method::Auto => short < EXACT_BELOW || width > short / 4 * 3,
    };
    let decompose = |a: MatRef| {
        let view = faer_view(a);
        if exact {
            exact_triplets(view)
        } else {
            randomized_triplets(view, width, options)
        }
    };
    let triplets = match unusual_size(a, total) {
        None => decompose(a)?,
        Some(size) => {
            let mut scaled = a.to_matrix();
            scaled
                .data
                .iter_mut()
                .for_each(|x| *x = (f64::from(*x) / size) as f32);
            let mut triplets = decompose(scaled.view())?;
            triplets
                .s
                .iter_mut()
                .for_each(|s| *s = (f64::from(*s) * size) as f32);
            triplets
        }
    };
    Ok(cut(a, triplets, rank, total, false))
}

/// The root mean square, where squares would leave the range of `f32`.
fn unusual_size(a: MatRef, total: f64) -> Option<f64> {
    let size = (total / (a.rows() * a.cols()) as f64).sqrt();
    (!(1e-8..1e8).contains(&size)).then_some(size)
}

/// Singular triplets in order, as columns.
struct Triplets {
    u: Mat<f32>,
    s: Vec<f32>,
    v: Mat<f32>,
}

impl Triplets {
    fn empty(a: MatRef) -> Self {
        Triplets {
            u: Mat::zeros(a.rows(), 0),
            s: Vec::new(),
            v: Mat::zeros(a.cols(), 0),
        }
    }
}

/// A view for faer; the row stride may be longer than a row.
fn faer_view(a: MatRef<'_>) -> FaerRef<'_, f32> {
    FaerRef::from_row_major_slice_with_stride(a.data(), a.rows(), a.cols(), a.stride())
}

fn no_convergence(a: FaerRef<'_, f32>) -> LowRankError {
    LowRankError::NoConvergence {
        rows: a.nrows(),
        cols: a.ncols(),
    }
}

fn exact_triplets(a: FaerRef<'_, f32>) -> Result<Triplets, LowRankError> {
    let svd = a.thin_svd().map_err(|_| no_convergence(a))?;
    let s = svd.S().column_vector().iter().copied().collect();
    Ok(Triplets {
        u: svd.U().to_owned(),
        s,
        v: svd.V().to_owned(),
    })
}

fn randomized_triplets(
    a: FaerRef<'_, f32>,
    width: usize,
    options: &Options,
) -> Result<Triplets, LowRankError> {
    let orthonormal = |x: Mat<f32>| x.qr().compute_thin_Q();
    let sketch = random_matrix(a.ncols(), width, options.seed);
    let mut q = orthonormal(product(a, sketch.as_ref(), options.threads));
    drop(sketch);
    for _ in 0..options.power_iterations {
        let z = orthonormal(product(a.transpose(), q.as_ref(), options.threads));
        q = orthonormal(product(a, z.as_ref(), options.threads));
    }
    // a ≈ q · bᵀ with b = aᵀ · q = qb · r, so the small problem is r's.
    let b = product(a.transpose(), q.as_ref(), options.threads);
    let qr = b.qr();
    let small = qr.thin_R().thin_svd().map_err(|_| no_convergence(a))?;
    let s = small.S().column_vector().iter().copied().collect();
    let u = product(q.as_ref(), small.V(), options.threads);
    let v = product(qr.compute_thin_Q().as_ref(), small.U(), options.threads);
    Ok(Triplets { u, s, v })
}

/// Cuts triplets to the rank asked for and fixes their signs.
fn cut(a: MatRef, triplets: Triplets, rank: Rank, total: f64, zero_reached: bool) -> Svd {
    let limit = rank.max().min(triplets.s.len());
    let square = |s: &f32| f64::from(*s) * f64::from(*s);
    let (count, reached) = match rank {
        Rank::Fixed(_) => (limit, true),
        Rank::Energy { energy, .. } => {
            let mut kept = 0.0;
            let mut count = 0;
            // A rounding error of the f32 decomposition mustn't cost all of the rank.
            let goal = energy * total * (1.0 - 1e-6);
            while count < limit && kept < goal {
                kept += square(&triplets.s[count]);
                count += 1;
            }
            (count, kept >= goal || zero_reached)
        }
    };
    let s = triplets.s[..count].to_vec();
    let signs: Vec<f32> = (0..count)
        .map(|j| sign_of_largest(triplets.u.col_as_slice(j)))
        .collect();
    let mut u = vec![0.0; a.rows() * count];
    let mut v = vec![0.0; count * a.cols()];
    for (j, &sign) in signs.iter().enumerate() {
        for (i, x) in triplets.u.col_as_slice(j).iter().enumerate() {
            u[i * count + j] = sign * x;
        }
        let row = &mut v[j * a.cols()..][..a.cols()];
        for (out, x) in row.iter_mut().zip(triplets.v.col_as_slice(j)) {
            *out = sign * x;
        }
    }
    let kept = s.iter().map(square).sum();
    Svd {
        rows: a.rows(),
        cols: a.cols(),
        u,
        s,
        v,
        total,
        kept,
        reached,
    }
}

/// The sign that makes the entry of largest magnitude positive.
fn sign_of_largest(column: &[f32]) -> f32 {
    let mut largest = 0f32;
    for &x in column {
        if x.abs() > largest.abs() {
            largest = x;
        }
    }
    if largest < 0.0 { -1.0 } else { 1.0 }
}

/// A matrix of independent, nearly normal values, the same on every machine.
///
/// Each is a sum of four uniform 16-bit values, centred; range finders need
/// only sub-gaussian entries.
fn random_matrix(rows: usize, cols: usize, seed: u64) -> Mat<f32> {
    let mut state = seed;
    Mat::from_fn(rows, cols, |_, _| {
        let bits = split_mix(&mut state);
        let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        (sum as i64 - 2 * 0xffff) as f32 * (1.0 / 37837.0)
    })
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
