//! Which rows of a linear's input, and which experts, make which rows of its output.

use super::Result;
use super::context::Context;

/// What a slot of the output is made from.
pub(super) struct Work {
    /// Row of `y`.
    pub(super) y: usize,
    /// Rows of `x`, the expert of each, and the factor on its result.
    pub(super) from: Vec<(usize, usize, f32)>,
}

/// What each expert does, of many tokens: slots stand by expert.
pub(super) fn sorted(c: &Context<'_, '_>) -> Result<Vec<Work>> {
    let (slots, starts) = (c.i32s("slots")?, c.i32s("starts")?);
    let (top_k, kind) = (c.int("top_k").max(1), c.define("EXPERTS"));
    let place = |name: &str, value: i32| {
        usize::try_from(value).map_err(|_| c.fault(format!("`{name}` holds {value}")))
    };
    let mut works = Vec::new();
    for expert in 0..c.grid(2) {
        let ends = c.slice("starts", &starts, expert, 2)?;
        let (start, end) = (place("starts", ends[0])?, place("starts", ends[1])?);
        for &slot in c.slice("slots", &slots, start, end.saturating_sub(start))? {
            let slot = place("slots", slot)?;
            let x = if kind == 1 { slot / top_k } else { slot };
            works.push(Work {
                y: slot,
                from: vec![(x, expert, 1.0)],
            });
        }
    }
    Ok(works)
}

/// What each of some tokens does; with experts, the chosen of each.
pub(super) fn works(c: &Context<'_, '_>, tokens: usize, experts: i64) -> Result<Vec<Work>> {
    if experts == 0 {
        return Ok((0..tokens)
            .map(|m| Work {
                y: m,
                from: vec![(m, 0, 1.0)],
            })
            .collect());
    }
    let (ids, top_k) = (c.i32s("ids")?, c.int("top_k"));
    let expert = |slot: usize| -> Result<usize> {
        let id = c.slice("ids", &ids, slot, 1)?[0];
        usize::try_from(id).map_err(|_| c.fault(format!("expert {id} is none")))
    };
    let mut works = Vec::new();
    for m in 0..tokens {
        if experts == 1 {
            for slot in m * top_k..(m + 1) * top_k {
                works.push(Work {
                    y: slot,
                    from: vec![(m, expert(slot)?, 1.0)],
                });
            }
            continue;
        }
        let weights = c.f32s("weights")?;
        let mut from = Vec::with_capacity(top_k);
        for slot in m * top_k..(m + 1) * top_k {
            from.push((
                slot,
                expert(slot)?,
                c.slice("weights", &weights, slot, 1)?[0],
            ));
        }
        works.push(Work { y: m, from });
    }
    Ok(works)
}
