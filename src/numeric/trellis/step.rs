//! One step of the Viterbi algorithm, 32 groups of states at once.
//!
//! In the direction of falling weight index a state takes `K` new bits in at its low end: state
//! `s` follows the states `p G + s >> K` for `p` in `0..2^K`, where `G = 2^(L-K)`. The states that
//! follow the same ones are a **group**. A step takes the least cost over `p` for each group, and
//! adds the squared distance of the weight for each of its states.
//!
//! Costs are 16-bit fixed point and saturate; a common offset is taken off in each step. Integers
//! give the same result on every instruction set.

// Closures over vectors may stay calls outside of their instruction set: loops instead.
#![allow(clippy::needless_range_loop)]

use crate::numeric::simd::Scalar;

/// 32 costs.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Block<T>(pub(super) [T; LANES]);

/// Costs in a block.
pub(super) const LANES: usize = 32;

/// Fractional bits of codes and weights in fixed point: `±510` fits 16 bits.
pub(super) const FRACTION: i32 = 6;

/// How often distances are doubled before they are squared, so that those of `bits` per weight
/// keep some resolution.
pub(super) const fn doublings(bits: u8) -> u32 {
    (bits as u32).saturating_sub(3)
}

/// Distances from here on count linearly, as their square would not fit.
pub(super) const fn knee(doublings: u32) -> u16 {
    (i16::MAX as u16) >> doublings
}

/// Operations on 32 lanes of 16 bits.
pub(super) trait Lanes: Copy {
    /// 32 lanes.
    type V: Copy;

    fn load_u(self, x: &Block<u16>) -> Self::V;
    fn load_i(self, x: &Block<i16>) -> Self::V;
    fn store(self, x: Self::V, out: &mut Block<u16>);
    fn splat(self, x: u16) -> Self::V;
    /// The lesser of unsigned lanes.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// A bit for each lane with `a < b`, unsigned.
    fn less(self, a: Self::V, b: Self::V) -> u32;
    /// `a - b`, wrapping.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a + b`, unsigned, saturating.
    fn add_unsigned(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`, unsigned, saturating.
    fn sub_unsigned(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a + b`, signed, saturating.
    fn add_signed(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`, signed, saturating.
    fn sub_signed(self, a: Self::V, b: Self::V) -> Self::V;
    /// Magnitudes of signed lanes; that of -32768 is 32768.
    fn abs(self, a: Self::V) -> Self::V;
    /// `(a * a + 2^14) >> 15` of signed lanes.
    fn square(self, a: Self::V) -> Self::V;
    /// Lanes `32 part / 2^K..` of `x`, each `2^K` times, for `K` of at most 5.
    fn spread<const K: u32>(self, x: Self::V, part: usize) -> Self::V;
    /// The least unsigned lane.
    fn least(self, a: Self::V) -> u16;
}

/// What a step works on; lengths are `2^L / 32` but for `choices`, which has `2^L / 32` as well.
pub(super) struct Step<'a> {
    /// Costs of the states before.
    pub(super) before: &'a [Block<u16>],
    /// Costs of the states behind.
    pub(super) after: &'a mut [Block<u16>],
    /// Values of the states.
    pub(super) codes: &'a [Block<i16>],
    /// Per 32 groups, a tree of choices: bit `g` of word `h` says that group `g` takes the upper
    /// half below node `h`. The root is word 1.
    pub(super) choices: &'a mut [u32],
    /// The weight in fixed point.
    pub(super) x: i16,
    /// What is taken off all costs; at most the least of them.
    pub(super) offset: u16,
}

/// The distance of `x` from codes, squared below the knee.
#[inline(always)]
fn distance<S: Lanes>(s: S, x: S::V, codes: S::V, doublings: u32, knee: S::V) -> S::V {
    let d = s.sub_signed(x, codes);
    if doublings == 0 {
        return s.square(d);
    }
    let mut scaled = d;
    for _ in 0..doublings {
        scaled = s.add_signed(scaled, scaled);
    }
    let excess = s.sub_unsigned(s.abs(d), knee);
    s.add_unsigned(s.square(scaled), excess)
}

/// Costs of all states by one weight alone.
#[inline(always)]
pub(super) fn start<S: Lanes>(
    s: S,
    after: &mut [Block<u16>],
    codes: &[Block<i16>],
    x: i16,
    bits: u8,
) {
    let doublings = doublings(bits);
    let knee = s.splat(knee(doublings));
    let x = s.splat(x as u16);
    for (out, codes) in after.iter_mut().zip(codes) {
        s.store(distance(s, x, s.load_i(codes), doublings, knee), out);
    }
}

/// A step with `P = 2^K` states before each; returns the least cost before.
///
/// There are at least 32 groups.
#[inline(always)]
pub(super) fn step<S: Lanes, const K: u32, const P: usize>(s: S, step: Step<'_>) -> u16 {
    let doublings = const { doublings(K as u8) };
    let knee = s.splat(knee(doublings));
    let x = s.splat(step.x as u16);
    let offset = s.splat(step.offset);
    let groups = step.before.len() / P;
    let mut least = s.splat(u16::MAX);
    let after = step.after.as_chunks_mut::<P>().0.iter_mut();
    let codes = step.codes.as_chunks::<P>().0.iter();
    let choices = step.choices.as_chunks_mut::<P>().0.iter_mut();
    for (i, ((after, codes), choices)) in after.zip(codes).zip(choices).enumerate() {
        let mut tree = [least; P];
        for p in 0..P {
            tree[p] = s.load_u(&step.before[p * groups + i]);
        }
        let mut n = P / 2;
        while n > 0 {
            for k in 0..n {
                choices[n + k] = s.less(tree[2 * k + 1], tree[2 * k]);
                tree[k] = s.min(tree[2 * k], tree[2 * k + 1]);
            }
            n /= 2;
        }
        least = s.min(least, tree[0]);
        let best = s.sub(tree[0], offset);
        for j in 0..P {
            let codes = s.load_i(&codes[j]);
            let cost = distance(s, x, codes, doublings, knee);
            s.store(
                s.add_unsigned(spread::<S, K>(s, best, j), cost),
                &mut after[j],
            );
        }
    }
    s.least(least)
}

/// The groups of block `j` of states.
#[inline(always)]
fn spread<S: Lanes, const K: u32>(s: S, best: S::V, j: usize) -> S::V {
    if K <= 5 {
        return s.spread::<K>(best, j);
    }
    let mut lanes = Block([0; LANES]);
    s.store(best, &mut lanes);
    s.splat(lanes.0[(j >> (K - 5)) % LANES])
}

/// [`step`] for less than 32 groups, in plain Rust; there is one tree of choices.
pub(super) fn small_step(step: Step<'_>, bits: u8) -> u16 {
    let (width, doublings) = (1usize << bits, doublings(bits));
    let groups = step.before.len() * LANES / width;
    let choices = &mut step.choices[..width];
    choices.fill(0);
    let mut least = u16::MAX;
    let mut tree = [0u16; 256];
    for g in 0..groups {
        for p in 0..width {
            let state = p * groups + g;
            tree[p] = step.before[state / LANES].0[state % LANES];
        }
        let mut n = width / 2;
        while n > 0 {
            for k in 0..n {
                let upper = tree[2 * k + 1] < tree[2 * k];
                choices[n + k] |= u32::from(upper) << g;
                tree[k] = tree[2 * k].min(tree[2 * k + 1]);
            }
            n /= 2;
        }
        least = least.min(tree[0]);
        let best = tree[0] - step.offset;
        for new in 0..width {
            let state = g * width + new;
            let code = step.codes[state / LANES].0[state % LANES];
            let cost = scalar_distance(step.x, code, doublings);
            step.after[state / LANES].0[state % LANES] = best.saturating_add(cost);
        }
    }
    least
}

fn scalar_distance(x: i16, code: i16, doublings: u32) -> u16 {
    let d = x.saturating_sub(code);
    let scaled = i32::from(d) << doublings;
    let scaled = scaled.clamp(i32::from(i16::MIN), i32::from(i16::MAX));
    let square = (scaled * scaled + (1 << 14)) >> 15;
    if doublings == 0 {
        return square as u16;
    }
    let excess = d.unsigned_abs().saturating_sub(knee(doublings));
    (square as u16).saturating_add(excess)
}

macro_rules! each {
    ($i:ident => $value:expr) => {{
        let mut out = [0u16; LANES];
        for ($i, out) in out.iter_mut().enumerate() {
            *out = $value;
        }
        out
    }};
}

impl Lanes for Scalar {
    type V = [u16; LANES];

    #[inline(always)]
    fn load_u(self, x: &Block<u16>) -> Self::V {
        x.0
    }
    #[inline(always)]
    fn load_i(self, x: &Block<i16>) -> Self::V {
        each!(i => x.0[i] as u16)
    }
    #[inline(always)]
    fn store(self, x: Self::V, out: &mut Block<u16>) {
        out.0 = x;
    }
    #[inline(always)]
    fn splat(self, x: u16) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        each!(i => a[i].min(b[i]))
    }
    #[inline(always)]
    fn less(self, a: Self::V, b: Self::V) -> u32 {
        let mut mask = 0;
        for i in 0..LANES {
            mask |= u32::from(a[i] < b[i]) << i;
        }
        mask
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each!(i => a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn add_unsigned(self, a: Self::V, b: Self::V) -> Self::V {
        each!(i => a[i].saturating_add(b[i]))
    }
    #[inline(always)]
    fn sub_unsigned(self, a: Self::V, b: Self::V) -> Self::V {
        each!(i => a[i].saturating_sub(b[i]))
    }
    #[inline(always)]
    fn add_signed(self, a: Self::V, b: Self::V) -> Self::V {
        each!(i => (a[i] as i16).saturating_add(b[i] as i16) as u16)
    }
    #[inline(always)]
    fn sub_signed(self, a: Self::V, b: Self::V) -> Self::V {
        each!(i => (a[i] as i16).saturating_sub(b[i] as i16) as u16)
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        each!(i => (a[i] as i16).unsigned_abs())
    }
    #[inline(always)]
    fn square(self, a: Self::V) -> Self::V {
        each!(i => ((i32::from(a[i] as i16) * i32::from(a[i] as i16) + (1 << 14)) >> 15) as u16)
    }
    #[inline(always)]
    fn spread<const K: u32>(self, x: Self::V, part: usize) -> Self::V {
        each!(i => x[(part * LANES + i) >> K])
    }
    #[inline(always)]
    fn least(self, a: Self::V) -> u16 {
        let mut least = u16::MAX;
        for x in a {
            least = least.min(x);
        }
        least
    }
}
