//! Sums, products, scales, soft caps and slices of activations.

use super::math::tanh;
use super::vector::{Isa, LANES, Vector, dispatch};
use crate::exec::pool::Pool;
use std::ops::Range;

/// Values per part: long enough to be worth a thread's while.
const PART: usize = 8 << 10;

/// `out += x`.
///
/// # Panics
/// Lengths differ.
pub fn add(pool: &Pool, x: &[f32], out: &mut [f32]) {
    pair(pool, x, out, add_at);
}

/// `out *= x`.
///
/// # Panics
/// Lengths differ.
pub fn mul(pool: &Pool, x: &[f32], out: &mut [f32]) {
    pair(pool, x, out, mul_at);
}

/// `out[t, i] += bias[i]`.
///
/// # Panics
/// The rows are not whole.
pub fn add_row(pool: &Pool, bias: &[f32], out: &mut [f32]) {
    rows(pool, bias, out, add_at);
}

/// `out[t, i] *= gain[i]`; a gain of one value scales everything.
///
/// # Panics
/// The rows are not whole.
pub fn mul_row(pool: &Pool, gain: &[f32], out: &mut [f32]) {
    match gain {
        [factor] => scale(pool, *factor, out),
        _ => rows(pool, gain, out, mul_at),
    }
}

/// `out *= factor`.
pub fn scale(pool: &Pool, factor: f32, out: &mut [f32]) {
    let isa = Isa::detect();
    let width = out.len();
    pool.split(out, width, (1, PART), |mut tile| {
        scale_at(isa, factor, tile.row_mut(0));
    });
}

/// `out = cap · tanh(out / cap)`.
pub fn softcap(pool: &Pool, cap: f32, out: &mut [f32]) {
    let isa = Isa::detect();
    let width = out.len();
    pool.split(out, width, (1, PART / 4), |mut tile| {
        softcap_at(isa, cap, tile.row_mut(0));
    });
}

/// `out[t, :] = x[t, columns]` of rows `width` wide.
///
/// # Panics
/// The columns lie outside of the rows, or `out` has another shape.
pub fn slice(pool: &Pool, x: &[f32], width: usize, columns: Range<usize>, out: &mut [f32]) {
    let part = columns.len();
    if part == 0 || width == 0 {
        return;
    }
    assert!(columns.end <= width && x.len() / width * part == out.len());
    let tokens = (PART / part).max(1);
    pool.split(out, part, (tokens, part), |mut tile| {
        for row in tile.rows() {
            let from = &x[row * width..][columns.clone()];
            tile.row_mut(row).copy_from_slice(from);
        }
    });
}

/// A kernel over as many values on both sides.
type Both = fn(Isa, &[f32], &mut [f32]);

fn pair(pool: &Pool, x: &[f32], out: &mut [f32], kernel: Both) {
    assert_eq!(x.len(), out.len());
    let isa = Isa::detect();
    let width = out.len();
    pool.split(out, width, (1, PART), |mut tile| {
        let x = &x[tile.cols()];
        kernel(isa, x, tile.row_mut(0));
    });
}

fn rows(pool: &Pool, x: &[f32], out: &mut [f32], kernel: Both) {
    if x.is_empty() {
        return;
    }
    assert_eq!(out.len() % x.len(), 0);
    let isa = Isa::detect();
    let tokens = (PART / x.len()).max(1);
    pool.split(out, x.len(), (tokens, x.len()), |mut tile| {
        for row in tile.rows() {
            kernel(isa, x, tile.row_mut(row));
        }
    });
}

dispatch! {
    pub(super) fn add_at(x: &[f32], out: &mut [f32]) = add_body;
}

dispatch! {
    fn mul_at(x: &[f32], out: &mut [f32]) = mul_body;
}

dispatch! {
    fn scale_at(factor: f32, out: &mut [f32]) = scale_body;
}

dispatch! {
    /// `x = cap · tanh(x / cap)`.
    pub(crate) fn softcap_at(cap: f32, x: &mut [f32]) = softcap_body;
}

#[inline(always)]
fn add_body<S: Vector>(_: S, x: &[f32], out: &mut [f32]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o += x;
    }
}

#[inline(always)]
fn mul_body<S: Vector>(_: S, x: &[f32], out: &mut [f32]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o *= x;
    }
}

#[inline(always)]
fn scale_body<S: Vector>(_: S, factor: f32, out: &mut [f32]) {
    for o in out {
        *o *= factor;
    }
}

#[inline(always)]
fn softcap_body<S: Vector>(s: S, cap: f32, x: &mut [f32]) {
    let (cap, inverse) = (s.splat(cap), s.splat(1.0 / cap));
    let (full, rest) = x.as_chunks_mut::<LANES>();
    for x in full {
        *x = s.to_array(s.mul(cap, tanh(s, s.mul(s.load_array(x), inverse))));
    }
    let last = s.mul(cap, tanh(s, s.mul(s.load_part(rest), inverse)));
    s.store_part(last, rest);
}

#[cfg(test)]
mod tests {
    use super::super::float::tests::noise;
    use super::*;

    #[test]
    fn operations_do_what_they_say() {
        let (width, tokens) = (321, 250);
        let x = noise(1, width * tokens);
        let y = noise(2, width * tokens);
        for threads in 1..=3 {
            let pool = Pool::new(threads);
            let run = |f: &dyn Fn(&mut [f32])| {
                let mut out = y.clone();
                f(&mut out);
                out
            };
            let sum = run(&|out| add(&pool, &x, out));
            let product = run(&|out| mul(&pool, &x, out));
            let biased = run(&|out| add_row(&pool, &x[..width], out));
            let gained = run(&|out| mul_row(&pool, &x[..width], out));
            let scaled = run(&|out| mul_row(&pool, &[2.5], out));
            let capped = run(&|out| softcap(&pool, 0.5, out));
            for i in 0..y.len() {
                assert_eq!(sum[i], y[i] + x[i]);
                assert_eq!(product[i], y[i] * x[i]);
                assert_eq!(biased[i], y[i] + x[i % width]);
                assert_eq!(gained[i], y[i] * x[i % width]);
                assert_eq!(scaled[i], y[i] * 2.5);
                let want = 0.5 * (f64::from(y[i]) / 0.5).tanh();
                assert!((f64::from(capped[i]) - want).abs() <= 3e-7 * want.abs());
            }
            let mut part = vec![0.0; tokens * 7];
            slice(&pool, &x, width, 300..307, &mut part);
            for (i, part) in part.iter().enumerate() {
                assert_eq!(*part, x[i / 7 * width + 300 + i % 7]);
            }
        }
    }
}
