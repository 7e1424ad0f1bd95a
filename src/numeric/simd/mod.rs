//! One source, several instruction sets.
//!
//! A kernel is an `#[inline(always)]` function over a [`Simd`] token, whose
//! operations work on 16 lanes whatever the registers' width.
//! [`multiversion!`] instantiates it for AVX-512, AVX2 and plain Rust and picks
//! at run time. Every operation is exactly rounded, none is contracted, and
//! sums of lanes have a fixed order, so all versions give the same bits.

mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

pub(crate) use scalar::Scalar;

/// Lanes of every vector, and running sums that the kernels keep.
pub(crate) const LANES: usize = 16;

/// Operations on vectors of 16 `f32`.
pub(crate) trait Simd: Copy {
    /// 16 `f32`.
    type F: Copy;
    /// 16 `f64`, for sums.
    type D: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`: the second if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: the second if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? x : y` in each lane.
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// Rounds up to whole numbers; lanes are positive.
    fn ceil(self, x: Self::F) -> Self::F;
    /// Rounds to 8 significant bits, those of `bf16`, nearest even; lanes are positive.
    fn round_bf16(self, x: Self::F) -> Self::F;
    /// The first lane that holds the least value; none is NaN.
    fn first_min(self, x: Self::F) -> usize;
    /// The larger magnitude, compared as integers, so that NaN is largest.
    ///
    /// The sign bits of `acc` are clear.
    fn max_abs(self, acc: Self::F, x: Self::F) -> Self::F;
    /// The largest lane of a [`Simd::max_abs`] result, as bits.
    fn fold_max_abs(self, acc: Self::F) -> u32;
    /// The sum of all lanes, halves first.
    fn sum(self, x: Self::F) -> f32;
    /// Writes the low byte of each lane's bits.
    fn store_low_bytes(self, x: Self::F, out: &mut [u8; LANES]);
    /// Zero sums.
    fn zero_sums(self) -> Self::D;
    /// Adds the exact squares of `x`.
    fn add_squares(self, sums: Self::D, x: Self::F) -> Self::D;
    /// The sum of all lanes, halves first.
    fn total(self, sums: Self::D) -> f64;
}

/// An instruction set that this processor has.
///
/// Only [`Level::detect`] and [`Level::available`] make one above the baseline,
/// so that holding one proves that the instructions exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Level(Kind);

/// The instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Whatever the target guarantees.
    Baseline,
    /// 256-bit vectors.
    Avx2,
    /// 512-bit vectors with byte and word operations.
    Avx512,
}

impl Level {
    /// The best level of this processor; the standard library caches the answer.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx2")
            {
                return Level(Kind::Avx512);
            }
            if is_x86_feature_detected!("avx2") {
                return Level(Kind::Avx2);
            }
        }
        Level(Kind::Baseline)
    }

    /// The instruction set.
    pub(crate) fn kind(self) -> Kind {
        self.0
    }

    /// Every level that this processor can run, for tests of equality.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        let best = Level::detect();
        [Kind::Baseline, Kind::Avx2, Kind::Avx512]
            .into_iter()
            .map(Level)
            .filter(|&level| level <= best)
            .collect()
    }
}

/// Defines `$name(level, args…)`, which runs `$body(token, args…)` at a [`Level`].
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;) => {
        $(#[$doc])*
        #[allow(unsafe_code)]
        $vis fn $name(level: $crate::numeric::simd::Level, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::numeric::simd::{Kind, x86};
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: this function has the features.
                    $body(unsafe { x86::Avx512::new() }, $($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: this function has the features.
                    $body(unsafe { x86::Avx2::new() }, $($arg),*)
                }
                match level.kind() {
                    // SAFETY: a level proves that the processor has it.
                    Kind::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Kind::Avx2 => return unsafe { avx2($($arg),*) },
                    Kind::Baseline => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = level;
            $body($crate::numeric::simd::Scalar, $($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// The lanes of a chunk that is shorter than a vector, padded with zeros.
#[inline(always)]
pub(crate) fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (o, &x) in out.iter_mut().zip(rest) {
        *o = x;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation, in one list of bits.
    #[inline(always)]
    fn all_operations<S: Simd>(s: S, x: &[f32; LANES], y: &[f32; LANES]) -> Vec<u64> {
        let (a, b) = (s.load(x), s.load(y));
        let mut bits = Vec::new();
        let results = [
            s.splat(x[3]),
            s.add(a, b),
            s.sub(a, b),
            s.mul(a, b),
            s.div(a, b),
            s.max(a, b),
            s.min(a, b),
            s.max_abs(s.splat(0.0), a),
            s.select_less(a, b, b, a),
            s.ceil(s.mul(a, a)),
            s.round_bf16(s.mul(a, a)),
        ];
        for result in results {
            let mut out = [0.0; LANES];
            s.store(result, &mut out);
            bits.extend(out.map(|x| u64::from(x.to_bits())));
            let mut bytes = [0; LANES];
            s.store_low_bytes(result, &mut bytes);
            bits.extend(bytes.map(u64::from));
        }
        bits.push(u64::from(s.fold_max_abs(s.max_abs(s.splat(0.0), a))));
        bits.push(u64::from(s.sum(a).to_bits()));
        bits.extend([a, b, s.mul(a, a), s.splat(1.0)].map(|x| s.first_min(x) as u64));
        let sums = s.add_squares(s.add_squares(s.zero_sums(), a), b);
        bits.push(s.total(sums).to_bits());
        bits
    }

    multiversion! {
        fn all_at(x: &[f32; LANES], y: &[f32; LANES]) -> Vec<u64> = all_operations;
    }

    #[test]
    fn levels_agree_on_every_operation() {
        let x = std::array::from_fn(|i| (i as f32 * 1.37 - 9.1) * 1.1f32.powi(i as i32));
        let y = std::array::from_fn(|i| 0.3 - (i * i) as f32 * 0.017);
        let want = all_at(Level(Kind::Baseline), &x, &y);
        for level in Level::available() {
            assert_eq!(all_at(level, &x, &y), want, "{level:?}");
        }
    }
}
