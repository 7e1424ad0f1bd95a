//! Numbers for tests, and how far results may be from f64.

use half::f16;

/// Pseudorandom numbers (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// About normal, with standard deviation `scale`.
    pub(crate) fn normal(&mut self, scale: f64) -> f32 {
        let sum: f64 = (0..12).map(|_| self.unit()).sum();
        ((sum - 6.0) * scale) as f32
    }

    pub(crate) fn normals(&mut self, count: usize, scale: f64) -> Vec<f32> {
        (0..count).map(|_| self.normal(scale)).collect()
    }
}

pub(crate) fn f16_bits(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&v| f16::from_f32(v).to_bits()).collect()
}

pub(crate) fn from_f16(bits: u16) -> f64 {
    f64::from(f16::from_bits(bits))
}

/// Every value is within `tolerance` of what is wanted, relative to the largest of the wanted.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(1e-30f64, |m, w| m.max(w.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs() / largest;
        assert!(
            error <= tolerance,
            "{what}: [{i}] is {g}, not {w} ({error:.2e} of the largest)"
        );
    }
}
