//! One source, several instruction sets.
//!
//! Kernels are ordinary `#[inline(always)]` functions written so that the
//! compiler vectorises them. [`multiversion!`] instantiates one under AVX-512,
//! AVX2 and the baseline and picks at run time. Rust never contracts or
//! reorders floating-point operations, so all versions give the same bits.

/// The instruction set a kernel runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
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
                return Level::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Level::Avx2;
            }
        }
        Level::Baseline
    }

    /// Every level that this processor can run, for tests of equality.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        [Level::Baseline, Level::Avx2, Level::Avx512]
            .into_iter()
            .filter(|&level| level <= Level::detect())
            .collect()
    }
}

/// Defines `$name(level, args…)`, which runs `$body(args…)` at a [`Level`].
///
/// A level above what the processor has falls back to the detected one, so the
/// function is safe to call with any level.
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;) => {
        $(#[$doc])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $vis fn $name(level: $crate::numeric::simd::Level, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body($($arg),*) }
                use $crate::numeric::simd::Level;
                match level.min(Level::detect()) {
                    // SAFETY: the level is at most the detected one.
                    Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Baseline => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = level;
            $body($($arg),*)
        }
    };
}
pub(crate) use multiversion;
