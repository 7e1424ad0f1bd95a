//! The first steps of a path whose shared bits are given.

use super::step::{Block, FRACTION, LANES, doublings};

/// Costs of the paths from given bits, until each state has at most one.
#[derive(Default)]
pub(super) struct Seam {
    costs: [Vec<f32>; 2],
}

impl Seam {
    /// Sets the costs of the states behind the first steps; returns how many those are.
    ///
    /// Until `L` new bits have come, a state says all the bits since the seam: there are no
    /// choices, and costs are summed in `f32`. States that cannot be have the largest cost, those
    /// that can a lesser one.
    pub(super) fn begin(
        &mut self,
        (states_log2, bits): (u8, u8),
        shared: u32,
        x: &[i16],
        codes: &[Block<i16>],
        out: &mut [Block<u16>],
    ) -> usize {
        let steps = states_log2 / bits;
        let mask = (1u32 << states_log2) - 1;
        let [before, after] = &mut self.costs;
        before.clear();
        before.push(0.0);
        // One unit of cost, as in a step.
        let unit = (1u32 << (2 * doublings(bits))) as f32 / 32768.0;
        let mut first = 0;
        for (i, &x) in (1..=steps).zip(x) {
            // States with these bits lie next to one another.
            first = (shared << (i * bits)) & mask;
            after.clear();
            for (old, &cost) in before.iter().enumerate() {
                let states = first as usize + (old << bits)..;
                for state in states.take(1 << bits) {
                    let code = codes[state / LANES].0[state % LANES];
                    let d = f32::from(x) - f32::from(code);
                    after.push(cost + d * d * unit);
                }
            }
            std::mem::swap(before, after);
        }
        let least = before.iter().copied().fold(f32::INFINITY, f32::min);
        out.fill(Block([u16::MAX; LANES]));
        for (state, cost) in (first as usize..).zip(before.iter()) {
            let cost = (cost - least).min(f32::from(u16::MAX - 1));
            out[state / LANES].0[state % LANES] = cost as u16;
        }
        usize::from(steps)
    }
}

const _: () = assert!(
    FRACTION == 6,
    "units of cost are those of 6 fractional bits"
);
