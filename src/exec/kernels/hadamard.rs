//! Rotations of activations: Walsh–Hadamard transforms of blocks, with a sign for each element.
//!
//! The rotation is that of [`crate::numeric::hadamard::Rotation`], bit for bit. 256 elements are
//! turned as a square of 16 vectors, so that steps between neighbours are steps between vectors.
// Closures over vectors may stay calls outside of the kernel's instruction set: loops instead.
#![allow(clippy::needless_range_loop)]

use super::vector::{Isa, LANES, Vector, dispatch};
use crate::exec::pool::Pool;
use crate::numeric::hadamard::{MAX_BLOCK, Rotation};

/// Elements of a square.
const SQUARE: usize = LANES * LANES;

/// Elements from which rows are shared among threads.
const SHARED: usize = 1 << 14;

/// A rotation with its signs at hand.
#[derive(Clone, Debug, PartialEq)]
pub struct Hadamard {
    block: usize,
    signs: Vec<f32>,
}

impl Hadamard {
    /// A rotation of vectors of length `width`.
    ///
    /// `None` if its block is not a power of two of at most 512 that divides `width`.
    pub fn new(rotation: Rotation, width: usize) -> Option<Self> {
        let block = rotation.block;
        let possible = block.is_power_of_two() && block <= MAX_BLOCK && width.is_multiple_of(block);
        possible.then(|| Hadamard {
            block,
            signs: rotation.signs(width),
        })
    }

    /// Length of the vectors.
    pub fn width(&self) -> usize {
        self.signs.len()
    }

    /// Every row x of `[tokens, width]` becomes H (s ∘ x).
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub fn forward(&self, pool: &Pool, x: &mut [f32]) {
        self.rows(pool, x, forward);
    }

    /// Every row x of `[tokens, width]` becomes s ∘ (H x): undoes [`Hadamard::forward`].
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub fn inverse(&self, pool: &Pool, x: &mut [f32]) {
        self.rows(pool, x, inverse);
    }

    fn rows(&self, pool: &Pool, x: &mut [f32], row: fn(Isa, usize, &[f32], &mut [f32])) {
        let width = self.width();
        if width == 0 || self.block <= 1 {
            return;
        }
        assert_eq!(x.len() % width, 0, "whole rows");
        let isa = Isa::detect();
        if x.len() < SHARED {
            for x in x.chunks_exact_mut(width) {
                row(isa, self.block, &self.signs, x);
            }
            return;
        }
        pool.split(
            x,
            width,
            ((SHARED / 4 / width).max(1), width),
            |mut tile| {
                for i in tile.rows() {
                    row(isa, self.block, &self.signs, tile.row_mut(i));
                }
            },
        );
    }
}

/// Every row x of `[_, cols]` becomes R x; `side.block` divides `cols`.
///
/// # Panics
/// If `x` is no whole number of rows.
pub fn rotate(pool: &Pool, side: &Rotation, x: &mut [f32], cols: usize) {
    match Hadamard::new(*side, cols) {
        Some(hadamard) => hadamard.forward(pool, x),
        None => side.rotate_rows(x, cols),
    }
}

/// Every row x of `[_, cols]` becomes Rᵀ x; `side.block` divides `cols`.
///
/// # Panics
/// If `x` is no whole number of rows.
pub fn unrotate(pool: &Pool, side: &Rotation, x: &mut [f32], cols: usize) {
    match Hadamard::new(*side, cols) {
        Some(hadamard) => hadamard.inverse(pool, x),
        None => side.unrotate_rows(x, cols),
    }
}

dispatch! {
    fn forward(block: usize, signs: &[f32], x: &mut [f32]) = forward_body;
}

dispatch! {
    fn inverse(block: usize, signs: &[f32], x: &mut [f32]) = inverse_body;
}

#[inline(always)]
fn forward_body<S: Vector>(s: S, block: usize, signs: &[f32], x: &mut [f32]) {
    for (x, sign) in x.iter_mut().zip(signs) {
        *x *= sign;
    }
    transform(s, block, x);
}

#[inline(always)]
fn inverse_body<S: Vector>(s: S, block: usize, signs: &[f32], x: &mut [f32]) {
    transform(s, block, x);
    for (x, sign) in x.iter_mut().zip(signs) {
        *x *= sign;
    }
}

/// The transform of every block.
#[inline(always)]
fn transform<S: Vector>(s: S, block: usize, x: &mut [f32]) {
    let norm = (block as f32).sqrt().recip();
    let (squares, rest) = x.as_chunks_mut::<SQUARE>();
    for square in squares {
        turn(s, block, norm, square);
    }
    if !rest.is_empty() {
        let mut square = [0.0; SQUARE];
        square[..rest.len()].copy_from_slice(rest);
        turn(s, block, norm, &mut square);
        rest.copy_from_slice(&square[..rest.len()]);
    }
    if block == 2 * SQUARE {
        for pair in x.chunks_exact_mut(2 * SQUARE) {
            let (a, b) = pair.split_at_mut(SQUARE);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = ((*a + *b) * norm, (*a - *b) * norm);
            }
        }
    }
}

/// The steps of a block inside 256 elements; the norm is for blocks that end there.
#[inline(always)]
fn turn<S: Vector>(s: S, block: usize, norm: f32, x: &mut [f32; SQUARE]) {
    let mut v = [s.splat(0.0); LANES];
    let lanes = x.as_chunks::<LANES>().0;
    for i in 0..LANES {
        v[i] = s.load_array(&lanes[i]);
    }
    v = s.transpose(v);
    steps(s, &mut v, block);
    v = s.transpose(v);
    steps(s, &mut v, block / LANES);
    if block <= SQUARE {
        let norm = s.splat(norm);
        for i in 0..LANES {
            v[i] = s.mul(v[i], norm);
        }
    }
    let lanes = x.as_chunks_mut::<LANES>().0;
    for i in 0..LANES {
        lanes[i] = s.to_array(v[i]);
    }
}

/// Sums and differences of vectors 1, 2, 4 and 8 apart, as far as `size` goes.
#[inline(always)]
fn steps<S: Vector>(s: S, v: &mut [S::V; LANES], size: usize) {
    let mut half = 1;
    while half < size.min(LANES) {
        for i in 0..LANES {
            if i & half == 0 {
                let (a, b) = (v[i], v[i + half]);
                v[i] = s.add(a, b);
                v[i + half] = s.sub(a, b);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_rotation_of_weights_on_every_instruction_set() {
        for (block, width) in [
            (2, 6),
            (8, 24),
            (16, 48),
            (64, 576),
            (256, 768),
            (512, 1536),
        ] {
            let rotation = Rotation { block, seed: 5 };
            let hadamard = Hadamard::new(rotation, width).unwrap();
            let x: Vec<f32> = (0..3 * width)
                .map(|i| ((i * 7919) % 1009) as f32 / 13.0 - 30.0)
                .collect();
            let (mut there, mut back) = (x.clone(), x.clone());
            rotation.rotate_rows(&mut there, width);
            rotation.unrotate_rows(&mut back, width);
            for isa in Isa::available() {
                let (mut a, mut b) = (x.clone(), x.clone());
                for row in a.chunks_exact_mut(width) {
                    forward(isa, block, &hadamard.signs, row);
                }
                for row in b.chunks_exact_mut(width) {
                    inverse(isa, block, &hadamard.signs, row);
                }
                assert!(a == there && b == back, "{block} {width} {isa:?}");
            }
        }
    }

    #[test]
    fn threads_change_nothing_and_the_way_back_is_one() {
        let hadamard = Hadamard::new(Rotation::of(1536, 9), 1536).unwrap();
        let x: Vec<f32> = (0..40 * 1536).map(|i| (i % 97) as f32 - 48.0).collect();
        let mut results = Vec::new();
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            let mut y = x.clone();
            hadamard.forward(&pool, &mut y);
            results.push(y.clone());
            hadamard.inverse(&pool, &mut y);
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-3));
        }
        assert!(results[0] == results[1]);
    }

    #[test]
    fn impossible_blocks_are_refused() {
        let rotation = |block| Rotation { block, seed: 1 };
        assert!(Hadamard::new(rotation(64), 96).is_none());
        assert!(Hadamard::new(rotation(1024), 1024).is_none());
        assert!(Hadamard::new(rotation(0), 64).is_none());
        let none = Hadamard::new(rotation(1), 7).unwrap();
        let mut x = [3.0; 7];
        none.forward(&Pool::new(1), &mut x);
        assert_eq!(x, [3.0; 7]);
    }
}
