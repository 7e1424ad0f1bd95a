//! Block Hadamard rotations with random signs: incoherence at `n log b` cost, nothing stored.
//!
//! `R = H·diag(s)`: H is block-diagonal, its blocks the orthonormal Walsh–Hadamard matrix of a power
//! of two, s are random signs that a seed makes again. R is orthogonal, so `W x = (W Rᵀ)(R x)`, and a
//! rotated matrix's entries are nearly Gaussian whatever the matrix was.
//!
//! Source: randomized Hadamard transforms as in QuIP#, Tseng et al., arXiv 2402.04396.

/// Largest block.
pub const MAX_BLOCK: usize = 512;

/// What splitmix64 counts in.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A rotation of vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Size of the blocks, a power of two that divides the vectors' length; 1: no rotation, and no
    /// signs either.
    pub block: usize,
    /// Where the signs come from.
    pub seed: u64,
}

/// The largest power of two that divides `n`, at most [`MAX_BLOCK`].
pub fn block_for(n: usize) -> usize {
    match n {
        0 => 1,
        n => (1 << n.trailing_zeros().min(31)).min(MAX_BLOCK),
    }
}

impl Rotation {
    /// The rotation of vectors of length `n` with the largest blocks.
    pub fn of(n: usize, seed: u64) -> Self {
        Self {
            block: block_for(n),
            seed,
        }
    }

    /// Whether vectors stay what they are.
    pub fn is_identity(&self) -> bool {
        self.block <= 1
    }

    /// `n` signs, each 1 or −1: bits of splitmix64 from the lowest on.
    pub fn signs(&self, n: usize) -> Vec<f32> {
        let mut state = self.seed;
        let mut word = 0u64;
        let sign = |i: usize| {
            if i.is_multiple_of(64) {
                state = state.wrapping_add(STEP);
                word = mix(state);
            }
            let bit = (word >> (i % 64)) & 1;
            if bit == 1 { -1.0 } else { 1.0 }
        };
        (0..n).map(sign).collect()
    }

    /// Sign number `i` of [`Self::signs`].
    pub fn sign(&self, i: usize) -> f32 {
        let words = (i as u64 / 64).wrapping_add(1);
        let word = mix(self.seed.wrapping_add(words.wrapping_mul(STEP)));
        if (word >> (i % 64)) & 1 == 1 {
            -1.0
        } else {
            1.0
        }
    }

    /// The rotation whose signs are negative where `negative` says so, if one seed makes them all.
    ///
    /// The first 64 signs are the seed, since its mixing can be undone; the others must follow.
    pub fn from_signs(block: usize, negative: &[bool]) -> Option<Self> {
        let first = negative.iter().take(64).enumerate();
        let word = first.fold(0u64, |word, (i, &bit)| word | (u64::from(bit) << i));
        let seed = unmix(word).wrapping_sub(STEP);
        let found = Self { block, seed };
        let signs = found.signs(negative.len());
        let same = signs.iter().zip(negative).all(|(&s, &n)| (s < 0.0) == n);
        same.then_some(found)
    }

    /// Every row x of `[_, cols]` becomes R x. Time: `cols · log block` a row.
    pub fn rotate_rows(&self, values: &mut [f32], cols: usize) {
        if self.is_identity() || cols == 0 {
            return;
        }
        self.rotate_rows_with(values, cols, &self.signs(cols));
    }

    /// The same with these signs.
    pub fn rotate_rows_with(&self, values: &mut [f32], cols: usize, signs: &[f32]) {
        if self.is_identity() || cols == 0 {
            return;
        }
        for row in values.chunks_exact_mut(cols) {
            row.iter_mut().zip(signs).for_each(|(x, s)| *x *= s);
            self.transform(row);
        }
    }

    /// Every row x of `[_, cols]` becomes Rᵀ x.
    pub fn unrotate_rows(&self, values: &mut [f32], cols: usize) {
        if self.is_identity() || cols == 0 {
            return;
        }
        let signs = self.signs(cols);
        for row in values.chunks_exact_mut(cols) {
            self.transform(row);
            row.iter_mut().zip(&signs).for_each(|(x, s)| *x *= s);
        }
    }

    /// Every column x of `[rows, cols]` becomes R x.
    pub fn rotate_cols(&self, values: &mut [f32], cols: usize) {
        if self.is_identity() || cols == 0 {
            return;
        }
        self.rotate_cols_with(values, cols, &self.signs(values.len() / cols));
    }

    /// The same with these signs.
    pub fn rotate_cols_with(&self, values: &mut [f32], cols: usize, signs: &[f32]) {
        if self.is_identity() || cols == 0 {
            return;
        }
        scale_rows(values, cols, signs);
        self.transform_cols(values, cols);
    }

    /// Every column x of `[rows, cols]` becomes Rᵀ x.
    pub fn unrotate_cols(&self, values: &mut [f32], cols: usize) {
        if cols > 0 {
            self.unrotate_cols_with(values, cols, &self.signs(values.len() / cols));
        }
    }

    /// The same for some blocks of rows whose signs these are.
    pub fn unrotate_cols_with(&self, values: &mut [f32], cols: usize, signs: &[f32]) {
        if self.is_identity() || cols == 0 {
            return;
        }
        self.transform_cols(values, cols);
        scale_rows(values, cols, signs);
    }

    /// H of every block of a vector.
    fn transform(&self, x: &mut [f32]) {
        let norm = (self.block as f32).sqrt().recip();
        for block in x.chunks_exact_mut(self.block) {
            let mut half = 1;
            while half < self.block {
                for pair in block.chunks_exact_mut(2 * half) {
                    let (a, b) = pair.split_at_mut(half);
                    butterfly(a, b);
                }
                half *= 2;
            }
            block.iter_mut().for_each(|v| *v *= norm);
        }
    }

    /// The same down the columns: whole rows are added and taken off.
    fn transform_cols(&self, values: &mut [f32], cols: usize) {
        let norm = (self.block as f32).sqrt().recip();
        for block in values.chunks_exact_mut(self.block * cols) {
            let mut half = cols;
            while half < block.len() {
                for pair in block.chunks_exact_mut(2 * half) {
                    let (a, b) = pair.split_at_mut(half);
                    butterfly(a, b);
                }
                half *= 2;
            }
            block.iter_mut().for_each(|v| *v *= norm);
        }
    }
}

/// `a, b = a + b, a − b`
fn butterfly(a: &mut [f32], b: &mut [f32]) {
    for (x, y) in a.iter_mut().zip(b) {
        (*x, *y) = (*x + *y, *x - *y);
    }
}

fn scale_rows(values: &mut [f32], cols: usize, factors: &[f32]) {
    for (row, s) in values.chunks_exact_mut(cols).zip(factors) {
        row.iter_mut().for_each(|x| *x *= s);
    }
}

fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Takes [`mix`] back: its multipliers' inverses modulo 2^64, its shifts undone.
fn unmix(state: u64) -> u64 {
    let z = state ^ (state >> 31) ^ (state >> 62);
    let z = z.wrapping_mul(0x3196_42b2_d24d_8ec3);
    let z = z ^ (z >> 27) ^ (z >> 54);
    let z = z.wrapping_mul(0x96de_1b17_3f11_9089);
    z ^ (z >> 30) ^ (z >> 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0)
            .collect()
    }

    /// R as a matrix, from its definition.
    fn matrix(rotation: Rotation, n: usize) -> Vec<f64> {
        let signs = rotation.signs(n);
        let entry = |i: usize, j: usize| {
            if i / rotation.block != j / rotation.block {
                return 0.0;
            }
            let odd = ((i % rotation.block) & (j % rotation.block)).count_ones() % 2;
            let sign = if odd == 1 { -1.0 } else { 1.0 };
            sign * f64::from(signs[j]) / (rotation.block as f64).sqrt()
        };
        (0..n * n).map(|at| entry(at / n, at % n)).collect()
    }

    #[test]
    fn equals_its_definition_and_comes_back() {
        for (rows, n) in [(3, 64), (2, 24), (1, 576), (5, 2), (2, 7)] {
            let rotation = Rotation::of(n, 11);
            let (x, r) = (ramp(rows * n), matrix(rotation, n));
            let mut y = x.clone();
            rotation.rotate_rows(&mut y, n);
            for (x, y) in x.chunks(n).zip(y.chunks(n)).filter(|_| rotation.block > 1) {
                for i in 0..n {
                    let want: f64 = (0..n).map(|j| r[i * n + j] * f64::from(x[j])).sum();
                    assert!((f64::from(y[i]) - want).abs() < 1e-4, "{rows}x{n}");
                }
            }
            rotation.unrotate_rows(&mut y, n);
            assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-4));
        }
    }

    #[test]
    fn signs_are_found_one_by_one() {
        let rotation = Rotation::of(576, 5);
        let signs = rotation.signs(576);
        assert!((0..576).all(|i| rotation.sign(i) == signs[i]));
    }

    #[test]
    fn a_rotation_is_found_by_its_signs() {
        for (n, seed) in [(576, 5), (64, u64::MAX), (48, 77), (1536, 1 << 40)] {
            let wanted = Rotation { block: 16, seed };
            let mut negative: Vec<bool> = wanted.signs(n).iter().map(|s| *s < 0.0).collect();
            let found = Rotation::from_signs(16, &negative).expect("one seed makes them");
            assert_eq!(found.signs(n), wanted.signs(n));
            assert!(n < 64 || found == wanted);
            if n > 64 {
                negative[n - 1] = !negative[n - 1];
                assert_eq!(Rotation::from_signs(16, &negative), None);
            }
        }
    }

    #[test]
    fn columns_are_rows_of_the_transpose() {
        let (rows, cols) = (48, 5);
        let rotation = Rotation::of(rows, 3);
        let x = ramp(rows * cols);
        let turned: Vec<f32> = (0..rows * cols)
            .map(|at| x[at % rows * cols + at / rows])
            .collect();
        let (mut by_cols, mut by_rows) = (x.clone(), turned);
        rotation.rotate_cols(&mut by_cols, cols);
        rotation.rotate_rows(&mut by_rows, rows);
        for r in 0..rows {
            for c in 0..cols {
                assert!((by_cols[r * cols + c] - by_rows[c * rows + r]).abs() < 1e-4);
            }
        }
        rotation.unrotate_cols(&mut by_cols, cols);
        assert!(x.iter().zip(&by_cols).all(|(a, b)| (a - b).abs() < 1e-4));
    }

    #[test]
    fn blocks_divide() {
        let cases = [
            (0, 1),
            (1, 1),
            (576, 64),
            (192, 64),
            (1536, 512),
            (4096, 512),
            (7, 1),
        ];
        for (n, block) in cases {
            assert_eq!(block_for(n), block);
        }
    }
}
