//! Rotary position embedding (arXiv 2104.09864).
//!
//! Frequencies are computed step by step in `f32`, as Hugging Face transformers does, since at
//! long positions the rounding of a frequency shows in the angle.

use super::vector::{Isa, Vector, dispatch};
use crate::exec::pool::Pool;
use crate::ir::RopeScaling;
use std::f64::consts::PI;

/// Values per part: long enough to be worth a thread's while.
const PART: usize = 16 << 10;

/// The frequencies of one kind of rotary embedding.
#[derive(Clone, Debug)]
pub struct RopeTable {
    theta: f64,
    rotary_dim: usize,
    scaling: Option<RopeScaling>,
    inverse_frequencies: Vec<f32>,
    /// Factor on cosines and sines.
    attention_factor: f32,
}

/// Cosines and sines `[tokens, rotary_dim / 2]` of the positions of some tokens.
#[derive(Clone, Debug)]
pub struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl RopeTable {
    /// Frequencies `1 / theta^(2i / rotary_dim)`, stretched as `scaling` says.
    pub fn new(theta: f64, rotary_dim: usize, scaling: Option<&RopeScaling>) -> Self {
        let plain = plain_frequencies(theta, rotary_dim);
        let (inverse_frequencies, attention_factor) = match scaling {
            None | Some(RopeScaling::Dynamic { .. }) => (plain, 1.0),
            Some(RopeScaling::Linear { factor }) => {
                let factor = *factor as f32;
                (plain.iter().map(|f| f / factor).collect(), 1.0)
            }
            Some(scaling @ RopeScaling::Llama3 { .. }) => (llama3(&plain, scaling), 1.0),
            Some(RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_context,
                attention_factor,
            }) => {
                let ramp =
                    ramp_bounds(theta, rotary_dim, *beta_fast, *beta_slow, *original_context);
                let stretched = yarn(theta, rotary_dim, *factor, ramp);
                (stretched, *attention_factor as f32)
            }
        };
        Self {
            theta,
            rotary_dim,
            scaling: scaling.cloned(),
            inverse_frequencies,
            attention_factor,
        }
    }

    /// The frequencies of a base that does not grow, `[rotary_dim / 2]`, as radians per position.
    pub fn inverse_frequencies(&self) -> &[f32] {
        &self.inverse_frequencies
    }

    /// The factor on cosines and sines.
    pub fn attention_factor(&self) -> f32 {
        self.attention_factor
    }

    /// Cosines and sines of tokens at `positions`.
    ///
    /// Dynamic scaling goes by the length of the sequence: the largest position's, or `expected` where
    /// more tokens are known to follow.
    pub fn angles(&self, positions: &[u32], expected: usize) -> Angles {
        let last = positions.iter().max().map_or(0, |&p| u64::from(p) + 1);
        let longer = self.dynamic_frequencies(last.max(expected as u64));
        let frequencies = longer.as_ref().unwrap_or(&self.inverse_frequencies);
        let pairs = frequencies.len();
        let mut cos = Vec::with_capacity(positions.len() * pairs);
        let mut sin = Vec::with_capacity(positions.len() * pairs);
        for &position in positions {
            for frequency in frequencies {
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32 * self.attention_factor);
                sin.push(angle.sin() as f32 * self.attention_factor);
            }
        }
        Angles { cos, sin, pairs }
    }

    /// Frequencies of a base that has grown with the length, where it has (NTK-aware scaling).
    fn dynamic_frequencies(&self, length: u64) -> Option<Vec<f32>> {
        let Some(RopeScaling::Dynamic {
            factor,
            original_context,
        }) = self.scaling
        else {
            return None;
        };
        if length <= original_context || self.rotary_dim <= 2 {
            return None;
        }
        let stretch = factor * length as f64 / original_context as f64 - (factor - 1.0);
        let dim = self.rotary_dim as f64;
        let base = self.theta * stretch.powf(dim / (dim - 2.0));
        Some(plain_frequencies(base, self.rotary_dim))
    }
}

/// `theta^(2i / dim)`, each step rounded to `f32`.
fn powers(theta: f64, dim: usize) -> impl Iterator<Item = f32> {
    let base = f64::from(theta as f32);
    (0..dim / 2).map(move |i| base.powf(f64::from((2 * i) as f32 / dim as f32)) as f32)
}

fn plain_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    powers(theta, dim).map(|power| 1.0 / power).collect()
}

/// Long waves are stretched, short ones kept, those between blended (Llama 3.1).
fn llama3(plain: &[f32], scaling: &RopeScaling) -> Vec<f32> {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_context,
    } = *scaling
    else {
        return plain.to_vec();
    };
    let context = original_context as f64;
    let (longest, shortest) = (context / low_freq_factor, context / high_freq_factor);
    let stretch = |f: f32| {
        let wavelength = (2.0 * PI) as f32 / f;
        if f64::from(wavelength) > longest {
            f / factor as f32
        } else if f64::from(wavelength) < shortest {
            f
        } else {
            let smooth = (context as f32 / wavelength - low_freq_factor as f32)
                / (high_freq_factor - low_freq_factor) as f32;
            (1.0 - smooth) * f / factor as f32 + smooth * f
        }
    };
    plain.iter().map(|&f| stretch(f)).collect()
}

/// Dimensions between which YaRN goes from extrapolation to interpolation.
fn ramp_bounds(theta: f64, dim: usize, fast: f64, slow: f64, context: u64) -> (f64, f64) {
    let dimension = |rotations: f64| {
        dim as f64 * (context as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
    };
    let low = dimension(fast).floor().max(0.0);
    let high = dimension(slow).ceil().min(dim as f64 - 1.0);
    (low, if low == high { high + 0.001 } else { high })
}

/// Interpolated and plain frequencies, blended by a ramp over the dimensions (arXiv 2309.00071).
fn yarn(theta: f64, dim: usize, factor: f64, (low, high): (f64, f64)) -> Vec<f32> {
    let blend = |(i, power): (usize, f32)| {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        let interpolated = 1.0 / (factor as f32 * power);
        interpolated * (1.0 - kept) + 1.0 / power * kept
    };
    powers(theta, dim).enumerate().map(blend).collect()
}

impl Angles {
    /// The angles that turn back; lengths stay as they were multiplied.
    pub fn inverse(&self) -> Self {
        Self {
            cos: self.cos.clone(),
            sin: self.sin.iter().map(|s| -s).collect(),
            pairs: self.pairs,
        }
    }
}

/// Rotates the first dimensions of each head of `out`, `[tokens, heads · head_dim]`.
///
/// A pair is dimensions `i` and `i + rotary_dim / 2`, or `2i` and `2i + 1` if `interleaved`.
///
/// # Panics
/// `angles` is of another number of tokens, or wider than a head.
pub fn rotate(
    pool: &Pool,
    angles: &Angles,
    heads: usize,
    head_dim: usize,
    interleaved: bool,
    out: &mut [f32],
) {
    let (width, pairs) = (heads * head_dim, angles.pairs);
    if width == 0 || pairs == 0 {
        return;
    }
    assert!(2 * pairs <= head_dim, "a rotary dimension above the head's");
    assert_eq!(angles.cos.len() / pairs * width, out.len());
    let isa = Isa::detect();
    let tokens = (PART / width).max(1);
    pool.split(out, width, (tokens, width), |mut tile| {
        for token in tile.rows() {
            let part = token * pairs..(token + 1) * pairs;
            let (cos, sin) = (&angles.cos[part.clone()], &angles.sin[part]);
            for head in tile.row_mut(token).chunks_mut(head_dim) {
                let head = &mut head[..2 * pairs];
                if interleaved {
                    rotate_neighbours(isa, cos, sin, head);
                } else {
                    rotate_halves(isa, cos, sin, head);
                }
            }
        }
    });
}

dispatch! {
    fn rotate_halves(cos: &[f32], sin: &[f32], head: &mut [f32]) = halves_body;
}

dispatch! {
    fn rotate_neighbours(cos: &[f32], sin: &[f32], head: &mut [f32]) = neighbours_body;
}

#[inline(always)]
fn halves_body<S: Vector>(_: S, cos: &[f32], sin: &[f32], head: &mut [f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[inline(always)]
fn neighbours_body<S: Vector>(_: S, cos: &[f32], sin: &[f32], head: &mut [f32]) {
    for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        let [a, b] = *pair;
        *pair = [a * cos - b * sin, b * cos + a * sin];
    }
}

#[cfg(test)]
mod tests {
    use super::super::float::tests::noise;
    use super::*;

    #[test]
    fn rotations_match_f64() {
        let (tokens, heads, head_dim, pairs) = (9, 3, 20, 8);
        let table = RopeTable::new(10_000.0, 2 * pairs, None);
        let positions: Vec<u32> = (0..tokens as u32).map(|i| i * i * 7).collect();
        let angles = table.angles(&positions, 0);
        let x = noise(1, tokens * heads * head_dim);
        for interleaved in [false, true] {
            let mut out = x.clone();
            rotate(
                &Pool::new(2),
                &angles,
                heads,
                head_dim,
                interleaved,
                &mut out,
            );
            for (i, &got) in out.iter().enumerate() {
                let (d, token) = (i % head_dim, i / (heads * head_dim));
                let base = i - d;
                let want = if d >= 2 * pairs {
                    f64::from(x[i])
                } else {
                    let (pair, second) = if interleaved {
                        (d / 2, d % 2)
                    } else {
                        (d % pairs, d / pairs)
                    };
                    let frequency = 10_000f64.powf(-(pair as f64) / pairs as f64);
                    let (sin, cos) = (f64::from(positions[token]) * frequency).sin_cos();
                    let place = |k| {
                        base + if interleaved {
                            2 * pair + k
                        } else {
                            pair + k * pairs
                        }
                    };
                    let (a, b) = (f64::from(x[place(0)]), f64::from(x[place(1)]));
                    if second == 0 {
                        a * cos - b * sin
                    } else {
                        b * cos + a * sin
                    }
                };
                // An f32 angle of a few hundred radians is good to some 2e-5.
                assert!((f64::from(got) - want).abs() < 5e-5, "{i}: {got} {want}");
            }
        }
    }

    /// Cosines of the last of `positions`, against those that transformers 5.23 computes.
    fn check(theta: f64, dim: usize, scaling: RopeScaling, positions: &[u32], want: &[f32]) {
        let angles = RopeTable::new(theta, dim, Some(&scaling)).angles(positions, 0);
        let got = &angles.cos[angles.cos.len() - angles.pairs..];
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{scaling:?}: {got} {want}");
        }
    }

    #[test]
    fn linear_and_dynamic_match_transformers() {
        let linear = RopeScaling::Linear { factor: 4.0 };
        let want = [0.863_441_05, 0.838_950_1, -0.363_203_3, 0.981_192_7];
        check(1e4, 8, linear, &[777], &want);
        let dynamic = RopeScaling::Dynamic {
            factor: 2.0,
            original_context: 64,
        };
        let all: Vec<u32> = (0..200).collect();
        let want = [-0.471_625_7, 0.438_815_95, 0.790_733_63, 0.999_281_7];
        check(1e4, 8, dynamic.clone(), &all, &want);
        let want = [0.300_592_54, 0.186_512_47, 0.882_332_86, 0.998_799_74];
        check(1e4, 8, dynamic, &all[..50], &want);
    }

    #[test]
    fn llama3_and_yarn_match_transformers() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let want = [
            -0.517_718_2,
            0.992_990_8,
            -0.585_294_66,
            0.815_742_6,
            0.917_993_4,
            0.999_645_3,
            0.999_986_65,
            0.999_999_5,
        ];
        check(5e5, 16, llama3, &[777], &want);
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 2048,
            attention_factor: 1.138_629_4,
        };
        let want = [
            -0.589_489_16,
            0.896_187_8,
            -0.760_152_4,
            0.501_916_7,
            0.163_239_75,
            0.541_705_97,
            1.117_214_9,
            1.136_481_9,
        ];
        check(1e4, 16, yarn, &[777], &want);
    }
}
