//! Numbers as JSON has them: what is infinite or no number is `null` there.

use serde::{Deserialize, Deserializer};

/// A number, or NaN where there is `null`.
///
/// # Errors
/// What stands there is neither.
pub fn or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(from).map(|value| value.unwrap_or(f64::NAN))
}

/// Two numbers, each as [`or_nan`].
///
/// # Errors
/// What stands there is no pair of them.
pub fn pair_or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<[f64; 2], D::Error> {
    let pair = <[Option<f64>; 2]>::deserialize(from)?;
    Ok(pair.map(|value| value.unwrap_or(f64::NAN)))
}
