//! Synthetic weights: seeded matrices with a chosen spectrum, for tests and examples.

use crate::ir::Synthetic;
use crate::weights::DType;
use crate::weights::read::encode_f32;

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Roughly standard normal: the sum of twelve uniforms, which needs no library function whose
    /// last bit differs between platforms.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// The matrix `[rows, cols]` of the recipe, row-major.
pub(super) fn values(recipe: &Synthetic, rows: usize, cols: usize) -> Vec<f32> {
    let mut random = Random(recipe.seed);
    let components = (recipe.rank as usize).min(rows).min(cols);
    let noise = if components == 0 { 1.0 } else { 0.1 };
    let mut left = Vec::with_capacity(components * rows);
    let mut right = Vec::with_capacity(components * cols);
    for _ in 0..components * rows {
        left.push(random.normal());
    }
    for _ in 0..components * cols {
        right.push(random.normal());
    }
    let decay: Vec<f64> = (1..=components)
        .map(|k| (k as f64).powf(-recipe.power))
        .collect();
    let norm = decay.iter().map(|d| d * d).sum::<f64>().sqrt().max(1e-30);
    let mut out = Vec::with_capacity(rows * cols);
    for r in 0..rows {
        for c in 0..cols {
            let part = |k: usize| decay[k] * left[k * rows + r] * right[k * cols + c];
            let smooth = (0..components).map(part).sum::<f64>() / norm;
            let mut x = smooth + noise * random.normal();
            if random.unit() <= recipe.outliers {
                x *= 20.0;
            }
            out.push((x * recipe.scale) as f32);
        }
    }
    out
}

/// The same as stored bytes.
pub(super) fn bytes(recipe: &Synthetic, dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
    let values = values(recipe, rows, cols);
    let none = || vec![0; dtype.bytes_for(values.len() as u64).unwrap_or(0) as usize];
    encode_f32(dtype, &values).unwrap_or_else(none)
}
