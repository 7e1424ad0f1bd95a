//! Means with their errors, quantiles, paired differences.

use serde::{Deserialize, Serialize};

/// A mean and the standard error of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub mean: f64,
    /// Its standard error, s / √n; not a number for one value.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub standard_error: f64,
}

/// What a quantity of every token looks like.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// The mean.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub mean: f64,
    /// Its standard error, tokens taken as independent.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub standard_error: f64,
    /// Half are below.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub median: f64,
    /// 90 % are below.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub p90: f64,
    /// 95 % are below.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub p95: f64,
    /// 99 % are below.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub p99: f64,
    /// 99.9 % are below.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub p999: f64,
    /// The largest.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub max: f64,
}

/// The difference of two means over the same windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Number of windows.
    pub windows: usize,
    /// Mean of the windows' differences.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub difference: f64,
    /// Its standard error.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub standard_error: f64,
    /// 95 % confidence interval (Student's t over windows).
    #[serde(deserialize_with = "crate::report::number::pair_or_nan")]
    pub confidence: [f64; 2],
    /// Windows in which the first is the lower one.
    pub first_lower: usize,
    /// Windows in which the second is the lower one.
    pub second_lower: usize,
}

impl Paired {
    /// Second minus first.
    pub fn reversed(self) -> Self {
        let [low, high] = self.confidence;
        Self {
            difference: -self.difference,
            confidence: [-high, -low],
            first_lower: self.second_lower,
            second_lower: self.first_lower,
            ..self
        }
    }
}

/// The mean of values, and its standard error.
///
/// Sums run in f64 in the order of the values, the squares around the mean.
pub fn mean(values: &[f64]) -> Mean {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    Mean {
        mean,
        standard_error: (squares / (n - 1.0) / n).sqrt(),
    }
}

/// The `share` quantile of ascending values, interpolated as numpy does by default.
pub fn quantile(ascending: &[f64], share: f64) -> f64 {
    let last = ascending.len().saturating_sub(1);
    let at = share.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let value = |i: usize| ascending.get(i.min(last)).copied().unwrap_or(f64::NAN);
    let (low, high) = (value(below), value(below + 1));
    // Two infinities have no difference.
    match at - at.floor() {
        0.0 => low,
        _ if low == high => low,
        part => low + (high - low) * part,
    }
}

/// Mean and quantiles of values.
pub fn distribution(values: &[f64]) -> Distribution {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Mean {
        mean,
        standard_error,
    } = mean(values);
    Distribution {
        mean,
        standard_error,
        median: quantile(&sorted, 0.5),
        p90: quantile(&sorted, 0.9),
        p95: quantile(&sorted, 0.95),
        p99: quantile(&sorted, 0.99),
        p999: quantile(&sorted, 0.999),
        max: quantile(&sorted, 1.0),
    }
}

/// The paired difference `a - b` of windows' means; `None` for fewer than two windows.
pub fn paired(a: &[f64], b: &[f64]) -> Option<Paired> {
    let windows = a.len().min(b.len());
    if windows < 2 {
        return None;
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let m = mean(&differences);
    let half = student_975(windows - 1) * m.standard_error;
    Some(Paired {
        windows,
        difference: m.mean,
        standard_error: m.standard_error,
        confidence: [m.mean - half, m.mean + half],
        first_lower: differences.iter().filter(|d| **d < 0.0).count(),
        second_lower: differences.iter().filter(|d| **d > 0.0).count(),
    })
}

/// The 97.5 % quantile of Student's t.
///
/// Few degrees of freedom from a table, more by the expansion around the normal distribution
/// (Abramowitz & Stegun 26.7.5), right to 1e-3.
pub fn student_975(freedom: usize) -> f64 {
    const FEW: [f64; 4] = [12.7062, 4.3027, 3.1824, 2.7764];
    if let Some(t) = freedom.checked_sub(1).and_then(|i| FEW.get(i)) {
        return *t;
    }
    let (n, z) = (freedom as f64, 1.959_963_985);
    let z2 = z * z;
    let g1 = z * (z2 + 1.0) / 4.0;
    let g2 = z * ((5.0 * z2 + 16.0) * z2 + 3.0) / 96.0;
    let g3 = z * (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) / 384.0;
    let g4 = z * ((((79.0 * z2 + 776.0) * z2 + 1482.0) * z2 - 1920.0) * z2 - 945.0) / 92160.0;
    z + (g1 + (g2 + (g3 + g4 / n) / n) / n) / n
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn as_numpy() {
        let values = [0.5, 0.1, 2.0, 0.7, 0.3, 0.9, 1.4, 0.05];
        let d = distribution(&values);
        close(d.mean, 0.74375);
        close(d.standard_error, 0.238_566_683_549_903_93);
        close(d.median, 0.6);
        close(d.p90, 1.58);
        close(d.p95, 1.79);
        close(d.p99, 1.958);
        close(d.max, 2.0);
        let infinite = [0.0, f64::INFINITY, f64::INFINITY];
        assert_eq!(distribution(&infinite).p99, f64::INFINITY);
        assert!(quantile(&[], 0.5).is_nan());
        assert!(mean(&[1.0]).standard_error.is_nan());
    }

    #[test]
    fn paired_as_numpy_and_scipy() {
        let (a, b) = ([1.0, 1.2, 0.9, 1.1, 1.3], [0.9, 1.25, 0.7, 1.0, 1.1]);
        let p = paired(&a, &b).expect("five windows");
        close(p.difference, 0.11);
        close(p.standard_error, 0.045_825_756_949_558_4);
        assert!((p.confidence[0] + 0.017_232_7).abs() < 1e-5);
        assert!((p.confidence[1] - 0.237_232_7).abs() < 1e-5);
        assert_eq!((p.first_lower, p.second_lower), (1, 4));
        assert_eq!(paired(&[1.0], &[1.0]), None);
    }

    #[test]
    fn student() {
        for (freedom, t) in [
            (1, 12.7062),
            (4, 2.7764),
            (5, 2.5706),
            (9, 2.2622),
            (30, 2.0423),
            (1000, 1.9623),
        ] {
            assert!((student_975(freedom) - t).abs() < 1e-3, "{freedom}");
        }
    }
}
