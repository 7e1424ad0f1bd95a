//! 16 lanes of `f32` with fused multiply-add, whatever the processor has.
//!
//! A kernel is an `#[inline(always)]` function over a [`Vector`] token;
//! [`dispatch!`] compiles it for AVX-512, for AVX2 and in plain Rust, and picks
//! at run time. Unlike `numeric::simd`, products and sums are fused. Fusing is
//! exactly rounded too, so all versions give the same bits.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod scalar;

pub(crate) use scalar::Scalar;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Operations on vectors of 16 `f32`.
///
/// # Safety of the pointer methods
/// Loads read and stores write exactly the lanes that they name, unaligned:
/// the caller must own that memory. Stored numbers are little-endian.
#[allow(unsafe_code)]
pub(crate) trait Vector: Copy {
    /// 16 `f32`.
    type V: Copy;

    /// Rows and vectors of the widest tile of sums that registers hold.
    const WIDE: bool;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// Reads 16 `f32`.
    unsafe fn load(self, at: *const f32) -> Self::V;
    /// # Safety
    /// Reads 32 bytes: 16 `bf16`.
    unsafe fn load_bf16(self, at: *const u8) -> Self::V;
    /// # Safety
    /// Reads 32 bytes: 16 `f16`.
    unsafe fn load_f16(self, at: *const u8) -> Self::V;
    /// # Safety
    /// Writes 16 `f32`.
    unsafe fn store(self, x: Self::V, at: *mut f32);
    /// Column `t` of 8 vectors goes to `at + t * stride`, 8 `f32` each.
    ///
    /// # Safety
    /// Reads (where `add`) and writes 8 `f32` at each of the 16 places.
    unsafe fn store_transposed(self, x: [Self::V; 8], at: *mut f32, stride: usize, add: bool);
    /// Rows become columns.
    fn transpose(self, x: [Self::V; LANES]) -> [Self::V; LANES];
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b`: the second if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`: the second if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? x : y` in each lane.
    fn select_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Magnitudes of `a` with the signs of `b`.
    fn copy_sign(self, a: Self::V, b: Self::V) -> Self::V;
    /// Adds the low bits of `n` to the exponents of `x`.
    fn add_exponent(self, x: Self::V, n: Self::V) -> Self::V;
    /// The sum of all lanes, halves first.
    fn sum(self, x: Self::V) -> f32;
    /// The largest lane; NaN lanes may be left out.
    fn largest(self, x: Self::V) -> f32;

    /// The lanes of an array.
    #[inline(always)]
    fn load_array(self, x: &[f32; LANES]) -> Self::V {
        // SAFETY: the array has 16 values.
        unsafe { self.load(x.as_ptr()) }
    }

    /// The lanes as an array.
    #[inline(always)]
    fn to_array(self, x: Self::V) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: the array has 16 values.
        unsafe { self.store(x, out.as_mut_ptr()) };
        out
    }

    /// Up to 16 values, the rest zeros.
    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::V {
        let mut lanes = [0.0; LANES];
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane = x;
        }
        self.load_array(&lanes)
    }

    /// As many lanes as `out` has room for.
    #[inline(always)]
    fn store_part(self, x: Self::V, out: &mut [f32]) {
        for (o, x) in out.iter_mut().zip(self.to_array(x)) {
            *o = x;
        }
    }
}

/// An instruction set that this processor has; only [`Isa::detect`] and tests make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Isa(IsaKind);

/// The instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum IsaKind {
    /// Plain Rust: what the target guarantees.
    Baseline,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ as well.
    Avx512,
}

impl Isa {
    /// The best set of this processor; the standard library caches the answer.
    #[inline]
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            return Isa(if wide { IsaKind::Avx512 } else { IsaKind::Avx2 });
        }
        Isa(IsaKind::Baseline)
    }

    /// Which it is.
    #[inline]
    pub(crate) fn kind(self) -> IsaKind {
        self.0
    }

    /// Every set that this processor has, for tests of equality.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        [IsaKind::Baseline, IsaKind::Avx2, IsaKind::Avx512]
            .map(Isa)
            .into_iter()
            .filter(|&isa| isa <= Isa::detect())
            .collect()
    }
}

/// Defines `$name(isa, args…)`, which runs `$body(token, args…)` on an [`Isa`].
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;) => {
        $(#[$doc])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::exec::kernels::vector::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::exec::kernels::vector::{IsaKind, avx2, avx512};
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: this function has the features.
                    $body(unsafe { avx512::Avx512::new() }, $($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn narrow($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: this function has the features.
                    $body(unsafe { avx2::Avx2::new() }, $($arg),*)
                }
                match isa.kind() {
                    // SAFETY: an `Isa` proves that the processor has it.
                    IsaKind::Avx512 => return unsafe { wide($($arg),*) },
                    // SAFETY: as above.
                    IsaKind::Avx2 => return unsafe { narrow($($arg),*) },
                    IsaKind::Baseline => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            $body($crate::exec::kernels::vector::Scalar, $($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// Hints that a cache line will be read soon; any address will do.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and every x86-64 processor has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests;
