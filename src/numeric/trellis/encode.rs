//! The Viterbi algorithm over tiles.

use super::seam::Seam;
use super::step::{Block, FRACTION, LANES, Step, small_step, start, step};
use super::{
    BITS, SEAMS, SEQUENCE, STATES_LOG2, TrellisError, UNIT, code, multiplier, state, tile_bytes,
};
use crate::numeric::simd::{Level, multiversion};

/// Encodes tiles of 256 weights; holds tables and scratch of one thread.
///
/// Memory: `38 * 2^L` bytes, 2.4 MiB for `L = 16`. Time grows with `2^L` and hardly with the bits.
pub struct Encoder {
    level: Level,
    states_log2: u8,
    /// What the table of codes was made with.
    multiplier: u32,
    codes: Vec<Block<i16>>,
    costs: [Vec<Block<u16>>; 2],
    /// Choices of each step.
    choices: Vec<u32>,
    start: Seam,
}

/// A path through the states of a tile, in the order of falling indices.
struct Path {
    states: [u32; SEQUENCE],
    /// Whether the states at the seam fit.
    cyclic: bool,
    /// Squared distance in fixed point.
    cost: u64,
}

impl Path {
    /// The better of both, the first on a tie.
    fn or(self, other: Path) -> Path {
        if (other.cyclic, self.cost) > (self.cyclic, other.cost) {
            other
        } else {
            self
        }
    }
}

/// Where a tile is cut, one place after the other.
const OFFSETS: [usize; 8] = [0, 128, 64, 192, 32, 160, 96, 224];

/// Steps of one after the other of a pass.
struct Pass<'a> {
    /// Costs before the first step in the first; costs behind the last, in the first as well.
    costs: &'a mut [Vec<Block<u16>>; 2],
    codes: &'a [Block<i16>],
    /// A tree of choices per step.
    choices: &'a mut [u32],
    bits: u8,
    /// Weights, one per step.
    x: &'a [i16],
}

multiversion! {
    fn run_pass(pass: Pass<'_>) = pass_body;
}

multiversion! {
    fn start_costs(after: &mut [Block<u16>], codes: &[Block<i16>], x: i16, bits: u8) = start;
}

#[inline(always)]
fn pass_body<S: super::step::Lanes>(s: S, pass: Pass<'_>) {
    match pass.bits {
        1 => steps::<S, 1, 2>(s, pass),
        2 => steps::<S, 2, 4>(s, pass),
        3 => steps::<S, 3, 8>(s, pass),
        4 => steps::<S, 4, 16>(s, pass),
        5 => steps::<S, 5, 32>(s, pass),
        6 => steps::<S, 6, 64>(s, pass),
        7 => steps::<S, 7, 128>(s, pass),
        _ => steps::<S, 8, 256>(s, pass),
    }
}

#[inline(always)]
fn steps<S: super::step::Lanes, const K: u32, const P: usize>(s: S, pass: Pass<'_>) {
    let small = pass.codes.len() < P;
    let stride = choice_words(pass.codes.len(), pass.bits);
    let mut offset = 0;
    for (&x, choices) in pass.x.iter().zip(pass.choices.chunks_exact_mut(stride)) {
        let [before, after] = &mut *pass.costs;
        let one = Step {
            before,
            after,
            codes: pass.codes,
            choices,
            x,
            offset,
        };
        let least = if small {
            small_step(one, pass.bits)
        } else {
            step::<S, K, P>(s, one)
        };
        // What is left in the costs behind the step: they are no less than this.
        offset = least - offset;
        pass.costs.swap(0, 1);
    }
}

/// Words of choices per step.
fn choice_words(blocks: usize, bits: u8) -> usize {
    blocks.max(1 << bits)
}

/// Fixed point, saturating; what is no number is 0.
fn fixed(x: f32) -> i16 {
    (x * (1.0 / UNIT) * (1 << FRACTION) as f32).round() as i16
}

impl Encoder {
    /// An encoder for `2^states_log2` states.
    ///
    /// # Errors
    /// If `states_log2` is not 8 to 16.
    pub fn new(states_log2: u8) -> Result<Self, TrellisError> {
        Self::at(Level::detect(), states_log2)
    }

    /// [`Encoder::new`] at a level.
    pub(super) fn at(level: Level, states_log2: u8) -> Result<Self, TrellisError> {
        if !STATES_LOG2.contains(&states_log2) {
            return Err(TrellisError::States { states_log2 });
        }
        let blocks = (1usize << states_log2) / LANES;
        let costs = || vec![Block([0; LANES]); blocks];
        Ok(Encoder {
            level,
            states_log2,
            multiplier: 0,
            codes: vec![Block([0; LANES]); blocks],
            costs: [costs(), costs()],
            choices: Vec::new(),
            start: Seam::default(),
        })
    }

    /// Log2 of the number of states.
    pub fn states_log2(&self) -> u8 {
        self.states_log2
    }

    /// Encodes 256 weights, divided by their scale, to `32 * bits` bytes.
    ///
    /// `recon` is what the bytes decode to at scale 1. A first pass finds the bits that the weights on
    /// either side of a seam share, a second one the best path with those. `seams` says at how many
    /// places, 1 to 8, the tile is cut for that; the best path is kept. At one seam the first pass works
    /// only on its surroundings, as the best path forgets what is far away. More take the whole tile,
    /// and try the bits of the best path so far as well: three passes each.
    /// What is not finite is taken as the largest weight, or as 0; a tile most of whose weights are
    /// far out of range (above 3 or so) codes badly.
    ///
    /// # Panics
    /// If `bits` is not 1 to 8, `seams` not 1 to 8, or a slice has another length.
    pub fn encode(&mut self, bits: u8, seams: u8, x: &[f32], code: &mut [u8], recon: &mut [f32]) {
        assert!(BITS.contains(&bits), "{bits} bits per weight");
        assert!(SEAMS.contains(&seams), "{seams} seams");
        assert_eq!(x.len(), SEQUENCE, "weights");
        assert_eq!(code.len(), tile_bytes(bits), "bytes of the code");
        assert_eq!(recon.len(), SEQUENCE, "decoded weights");
        // The trellis takes new bits in at falling indices.
        let mut fixed_x = [0i16; SEQUENCE];
        for (to, &from) in fixed_x.iter_mut().zip(x.iter().rev()) {
            *to = fixed(from);
        }
        self.prepare(bits);
        let around = if seams == 1 {
            seam(self.states_log2, bits).min(SEQUENCE / 2)
        } else {
            SEQUENCE / 2
        };
        let mut best = self.cut(bits, 0, None, around, &fixed_x);
        for &offset in &OFFSETS[1..usize::from(seams)] {
            // The bits there on the best path: it can only get better.
            let last = best.states[(offset + SEQUENCE - 1) % SEQUENCE];
            let own = last & (self.groups(bits) - 1);
            let better = self.cut(bits, offset, Some(own), around, &fixed_x);
            best = best.or(better);
            let other = self.cut(bits, offset, None, around, &fixed_x);
            best = best.or(other);
        }
        write(bits, &best.states, code);
        let mut states = best.states;
        if !best.cyclic {
            states = std::array::from_fn(|i| state(code, bits, self.states_log2, SEQUENCE - 1 - i));
        }
        for (&state, recon) in states.iter().rev().zip(recon) {
            *recon = f32::from(self.code(state) >> FRACTION) * UNIT;
        }
    }

    /// The best path whose shared bits at a seam are given, or are those found there.
    fn cut(
        &mut self,
        bits: u8,
        offset: usize,
        shared: Option<u32>,
        around: usize,
        x: &[i16; SEQUENCE],
    ) -> Path {
        let mut turned = *x;
        turned.rotate_left(offset);
        let shared = shared.unwrap_or_else(|| self.shared_bits(bits, around, &turned));
        let mut states = [0; SEQUENCE];
        let cyclic = self.path(bits, shared, &turned, &mut states);
        let distance = |(&state, &x): (&u32, &i16)| {
            let d = i64::from(self.code(state)) - i64::from(x);
            (d * d).unsigned_abs()
        };
        let cost = states.iter().zip(&turned).map(distance).sum();
        states.rotate_right(offset);
        Path {
            states,
            cyclic,
            cost,
        }
    }

    /// The value of a state in fixed point.
    fn code(&self, state: u32) -> i16 {
        self.codes[state as usize / LANES].0[state as usize % LANES]
    }

    /// Makes tables and scratch for `bits` per weight.
    fn prepare(&mut self, bits: u8) {
        let stride = choice_words(self.codes.len(), bits);
        if self.choices.len() < SEQUENCE * stride {
            self.choices.resize(SEQUENCE * stride, 0);
        }
        let multiplier = multiplier(self.states_log2, bits);
        if self.multiplier == multiplier {
            return;
        }
        self.multiplier = multiplier;
        let mut states = 0..;
        for (out, state) in self
            .codes
            .iter_mut()
            .flat_map(|b| &mut b.0)
            .zip(&mut states)
        {
            *out = (code(state, self.states_log2, bits) << FRACTION) as i16;
        }
    }

    /// The bits that the first state and the last one share.
    fn shared_bits(&mut self, bits: u8, around: usize, x: &[i16; SEQUENCE]) -> u32 {
        if self.states_log2 == bits {
            return 0;
        }
        let before = &x[SEQUENCE - around..];
        start_costs(self.level, &mut self.costs[0], &self.codes, before[0], bits);
        self.run(bits, &before[1..], 0);
        self.run(bits, &x[..around], 0);
        let mut state = first_least(&self.costs[0], 0..1 << self.states_log2, 1);
        for i in (0..around).rev() {
            state = self.previous(bits, i, state);
        }
        state & (self.groups(bits) - 1)
    }

    /// The best path whose first and last state share given bits; whether there is one.
    ///
    /// Of weights far out of range, costs may saturate on all such paths. Then the end is free, and
    /// a few weights at the seam are not what the path says.
    fn path(
        &mut self,
        bits: u8,
        shared: u32,
        x: &[i16; SEQUENCE],
        states: &mut [u32; SEQUENCE],
    ) -> bool {
        let first = self.start.begin(
            (self.states_log2, bits),
            shared,
            x,
            &self.codes,
            &mut self.costs[0],
        );
        self.run(bits, &x[first..], first);
        let ends = shared..1 << self.states_log2;
        let mut state = first_least(&self.costs[0], ends, self.groups(bits) as usize);
        let cyclic = cost_of(&self.costs[0], state) <= i16::MAX as u16;
        if !cyclic {
            state = first_least(&self.costs[0], 0..1 << self.states_log2, 1);
        }
        for i in (first..SEQUENCE).rev() {
            states[i] = state;
            state = self.previous(bits, i, state);
        }
        // All bits of the first states are shared ones or in `state`.
        let mask = (1u64 << self.states_log2) - 1;
        let new = first as u32 * u32::from(bits);
        let string = u64::from(shared) << new | u64::from(state) & ((1 << new) - 1);
        for (i, out) in states[..first].iter_mut().enumerate() {
            let behind = new - (i as u32 + 1) * u32::from(bits);
            *out = (string >> behind & mask) as u32;
        }
        cyclic
    }

    /// Does steps by `x`; their choices are kept from step `first` on.
    fn run(&mut self, bits: u8, x: &[i16], first: usize) {
        let stride = choice_words(self.codes.len(), bits);
        let pass = Pass {
            costs: &mut self.costs,
            codes: &self.codes,
            choices: &mut self.choices[first * stride..],
            bits,
            x,
        };
        run_pass(self.level, pass);
    }

    /// The state before `state` on the best path to it, by the choices of step `i`.
    fn previous(&self, bits: u8, i: usize, state: u32) -> u32 {
        let group = state >> bits;
        let stride = choice_words(self.codes.len(), bits);
        let tree = &self.choices[i * stride + ((group / 32) << bits) as usize..];
        let mut node = 1;
        for _ in 0..bits {
            node = 2 * node + (tree[node as usize] >> (group % 32) & 1);
        }
        (node - (1 << bits)) << (self.states_log2 - bits) | group
    }

    /// Groups of states.
    fn groups(&self, bits: u8) -> u32 {
        1 << (self.states_log2 - bits)
    }
}

/// Weights on either side of the seam that decide its bits: some constraint lengths.
fn seam(states_log2: u8, bits: u8) -> usize {
    SEAM_LENGTHS * usize::from(states_log2.div_ceil(bits))
}

/// Constraint lengths on either side; more gain nothing that shows (`docs/trellis.md`).
const SEAM_LENGTHS: usize = 10;

/// The first state of the least cost among some.
fn first_least(costs: &[Block<u16>], states: std::ops::Range<u32>, step: usize) -> u32 {
    let cost = |&s: &u32| cost_of(costs, s);
    states.step_by(step).min_by_key(cost).unwrap_or(0)
}

fn cost_of(costs: &[Block<u16>], state: u32) -> u16 {
    costs[state as usize / LANES].0[state as usize % LANES]
}

/// Writes the bits of a path; `states` are in the order of falling indices.
fn write(bits: u8, states: &[u32; SEQUENCE], out: &mut [u8]) {
    let (mut buffer, mut filled) = (0u32, 0);
    let mut out = out.iter_mut();
    for &state in states.iter().rev() {
        buffer |= (state & ((1 << bits) - 1)) << filled;
        filled += u32::from(bits);
        while filled >= 8 {
            if let Some(byte) = out.next() {
                *byte = buffer as u8;
            }
            buffer >>= 8;
            filled -= 8;
        }
    }
}
