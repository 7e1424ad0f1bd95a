//! Bits for blocks of columns under a common mean.

/// Why bits can't be spread.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WaterError {
    /// An energy or an error that is negative or not finite.
    #[error("{what} {index} is {value}: it must be finite and not negative")]
    Value {
        /// Energy or error.
        what: &'static str,
        /// Its index.
        index: usize,
        /// The value.
        value: f64,
    },
    /// A mean that no allowed bits reach.
    #[error("a mean of {mean} bits can't be made of {low} to {high} bits")]
    Mean {
        /// The mean asked for.
        mean: f64,
        /// Fewest bits allowed.
        low: u8,
        /// Most bits allowed.
        high: u8,
    },
}

/// Bits per block that minimise `Σ_j energies[j] * errors[bits_j - low]`.
///
/// `errors[i]` is the mean squared error of the quantizer at `low + i` bits for
/// a source of unit variance, so `low..low + errors.len()` are the bits allowed;
/// the bits sum to `round(mean * blocks)`. Exact: greedy by marginal gain where
/// errors fall convexly, else dynamic programming. Ties go to lower indices.
///
/// # Errors
/// Values that are negative or not finite; a mean out of reach.
///
/// # Cost
/// `blocks * log(blocks) * levels`, or `blocks² * levels²` if not convex.
pub fn water_fill(
    energies: &[f64],
    mean: f64,
    low: u8,
    errors: &[f64],
) -> Result<Vec<u8>, WaterError> {
    check("energy", energies)?;
    check("error", errors)?;
    let blocks = energies.len();
    let levels = errors.len();
    let high = usize::from(low) + levels.max(1) - 1;
    let refused = WaterError::Mean {
        mean,
        low,
        high: high.min(255) as u8,
    };
    let total = (mean * blocks as f64).round() - blocks as f64 * f64::from(low);
    let most = blocks * levels.saturating_sub(1);
    if levels == 0 || high > 255 || !(0.0..=most as f64).contains(&total) {
        return Err(refused);
    }
    let steps = total as usize;
    let gains: Vec<f64> = errors.windows(2).map(|e| e[0] - e[1]).collect();
    let convex = gains.windows(2).all(|g| g[0] >= g[1]);
    let extra = if convex {
        greedy(energies, &gains, steps)
    } else {
        exhaustive(energies, errors, steps)
    };
    Ok(extra.into_iter().map(|x| low + x as u8).collect())
}

fn check(what: &'static str, values: &[f64]) -> Result<(), WaterError> {
    let bad = |x: &f64| !x.is_finite() || *x < 0.0;
    match values.iter().position(bad) {
        Some(index) => Err(WaterError::Value {
            what,
            index,
            value: values[index],
        }),
        None => Ok(()),
    }
}

/// Takes the `steps` largest gains; within a block they fall.
fn greedy(energies: &[f64], gains: &[f64], steps: usize) -> Vec<usize> {
    let mut offers: Vec<(f64, usize, usize)> = Vec::with_capacity(energies.len() * gains.len());
    for (block, energy) in energies.iter().enumerate() {
        let of_block = gains.iter().enumerate();
        offers.extend(of_block.map(|(level, gain)| (energy * gain, level, block)));
    }
    // Lower levels first among equals, so that a block's levels are taken in order.
    offers.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut extra = vec![0; energies.len()];
    for &(_, _, block) in offers.iter().take(steps) {
        extra[block] += 1;
    }
    extra
}

/// Dynamic programming over the sum of bits.
fn exhaustive(energies: &[f64], errors: &[f64], steps: usize) -> Vec<usize> {
    let mut best = vec![f64::INFINITY; steps + 1];
    best[0] = 0.0;
    let mut choices: Vec<Vec<u8>> = Vec::with_capacity(energies.len());
    for energy in energies {
        let mut next = vec![f64::INFINITY; steps + 1];
        let mut choice = vec![0u8; steps + 1];
        for (sum, (next, choice)) in next.iter_mut().zip(&mut choice).enumerate() {
            for (level, error) in errors.iter().enumerate().take(sum + 1) {
                let cost = best[sum - level] + energy * error;
                if cost < *next {
                    (*next, *choice) = (cost, level as u8);
                }
            }
        }
        best = next;
        choices.push(choice);
    }
    let mut left = steps;
    let mut extra = vec![0; energies.len()];
    for (extra, choice) in extra.iter_mut().zip(&choices).rev() {
        *extra = usize::from(choice[left]);
        left -= *extra;
    }
    extra
}
