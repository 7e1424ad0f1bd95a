//! Which candidate each group gets, so that the sum of costs is least and the bytes suffice.

/// One candidate of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Bytes, all that is stored counted.
    pub bytes: u64,
    /// What it costs, in the unit of all costs.
    pub cost: f64,
}

/// Parts into which the bytes beyond each group's least are cut.
const UNITS: u64 = 1 << 15;

/// The index of a candidate for every group, so that the sum of costs is least and no more than `bytes`
/// are spent. `None` where even the smallest candidates are too many bytes, or a group has none.
///
/// Dynamic programming over bytes: exact up to a rounding of at most one part in 2^15 of the spare bytes
/// per group. What that rounding leaves over goes, step by step, where it lowers the sum most.
/// O(candidates * 2^15) time, one byte per group and part of memory.
pub fn choose(groups: &[Vec<Choice>], bytes: u64) -> Option<Vec<usize>> {
    let least: Option<Vec<u64>> = groups
        .iter()
        .map(|g| g.iter().map(|c| c.bytes).min())
        .collect();
    let least = least?;
    let spare = bytes.checked_sub(least.iter().fold(0, |sum, &b| sum.saturating_add(b)))?;
    let unit = spare.div_ceil(UNITS).max(1);
    let units = usize::try_from(spare / unit).unwrap_or(usize::MAX);
    // `best[u]`: the least cost of the groups so far with `u` units.
    let mut best = vec![0.0f64; units.saturating_add(1)];
    let mut taken: Vec<Vec<u16>> = Vec::with_capacity(groups.len());
    for (group, &least) in groups.iter().zip(&least) {
        let mut next = vec![f64::INFINITY; best.len()];
        let mut from = vec![0u16; best.len()];
        for (i, choice) in group.iter().enumerate().take(usize::from(u16::MAX)) {
            let size = (choice.bytes - least).div_ceil(unit);
            let Ok(size) = usize::try_from(size) else {
                continue;
            };
            let later = next.iter_mut().zip(from.iter_mut()).skip(size);
            for ((next, from), before) in later.zip(&best) {
                let cost = before + choice.cost;
                if cost < *next {
                    (*next, *from) = (cost, i as u16);
                }
            }
        }
        best = next;
        taken.push(from);
    }
    let mut at = units;
    let mut chosen = vec![0; groups.len()];
    for (g, group) in groups.iter().enumerate().rev() {
        let i = usize::from(*taken.get(g)?.get(at)?);
        at -= usize::try_from((group.get(i)?.bytes - least.get(g)?).div_ceil(unit)).ok()?;
        *chosen.get_mut(g)? = i;
    }
    top_up(groups, &mut chosen, bytes);
    Some(chosen)
}

/// Better candidates as long as one fits, the one that saves most first.
fn top_up(groups: &[Vec<Choice>], chosen: &mut [usize], bytes: u64) {
    loop {
        let spent: u64 = groups.iter().zip(&*chosen).map(|(g, &i)| g[i].bytes).sum();
        let left = bytes.saturating_sub(spent);
        let mut best: Option<(f64, usize, usize)> = None;
        for (g, group) in groups.iter().enumerate() {
            let now = group[chosen[g]];
            for (i, other) in group.iter().enumerate() {
                let gain = now.cost - other.cost;
                let fits = other.bytes <= now.bytes.saturating_add(left);
                if fits && gain > 0.0 && best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, g, i));
                }
            }
        }
        let Some((_, g, i)) = best else {
            return;
        };
        chosen[g] = i;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(bytes: u64, cost: f64) -> Choice {
        Choice { bytes, cost }
    }

    fn sum(groups: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
        let each = groups.iter().zip(chosen).map(|(g, &i)| g[i]);
        each.fold((0, 0.0), |(b, c), x| (b + x.bytes, c + x.cost))
    }

    #[test]
    fn no_other_choice_is_better() {
        // Not convex: the middle candidates are bad buys.
        let groups = vec![
            vec![choice(10, 9.0), choice(17, 8.9), choice(23, 1.0)],
            vec![choice(12, 5.0), choice(19, 2.0), choice(31, 1.5)],
            vec![
                choice(5, 7.0),
                choice(11, 6.9),
                choice(13, 0.5),
                choice(40, 0.0),
            ],
        ];
        for bytes in 27..100 {
            let chosen = choose(&groups, bytes).expect("enough");
            let (spent, cost) = sum(&groups, &chosen);
            assert!(spent <= bytes);
            for i in 0..36 {
                let other = [i % 3, i / 3 % 3, i / 9];
                let (size, least) = sum(&groups, &other);
                assert!(size > bytes || cost <= least + 1e-12, "{bytes}: {other:?}");
            }
        }
    }

    #[test]
    fn large_sizes_lose_little_to_rounding() {
        let group = |scale: f64| -> Vec<Choice> {
            let bits = (6..=28).map(|i| f64::from(i) / 4.0);
            bits.map(|b| choice((1e9 * b) as u64, scale * 4f64.powf(-b)))
                .collect()
        };
        let groups = vec![group(1.0), group(0.1), group(16.0), group(2.0)];
        let chosen = choose(&groups, 12_000_000_000).expect("enough");
        let (spent, cost) = sum(&groups, &chosen);
        assert!(
            (11_700_000_000..=12_000_000_000).contains(&spent),
            "{spent}"
        );
        let (_, even) = sum(&groups, &[6; 4]);
        assert!(cost < even);
    }

    #[test]
    fn too_little_is_refused_and_much_is_not_spent() {
        let group = vec![choice(10, 1.0), choice(20, 0.5)];
        assert_eq!(choose(std::slice::from_ref(&group), 9), None);
        assert_eq!(choose(&[group], u64::MAX), Some(vec![1]));
        assert_eq!(choose(&[], 0), Some(Vec::new()));
        assert_eq!(choose(&[Vec::new()], 10), None);
    }
}
