//! Products of `f32` tiles: rows × packed lanes.
//!
//! The left side is rows whose entries lie next to one another along the sum (`a[r, k]`), the
//! right side is a panel `b[k, lane]` of up to 48 lanes. Eight rows times three vectors of lanes
//! are 24 sums that stay in registers. Linear layers stored `[out, in]` are the left side, with
//! tokens as lanes; those stored `[in, out]` are the right side, with outputs as lanes; attention
//! uses both forms. Each sum runs along `k` in order with fused multiply-adds, so it has the same
//! bits whatever the tiles and the instruction set.
// Closures over vectors may stay calls outside of the kernel's instruction set: loops instead.
#![allow(unsafe_code, clippy::needless_range_loop)]

use super::scratch;
use super::vector::{Isa, LANES, Vector, dispatch};
use crate::exec::pool::{Pool, Tile};

/// Rows that are summed at once.
pub(crate) const ROWS: usize = 8;
/// Lanes of a panel.
pub(crate) const PANEL: usize = 3 * LANES;

/// The left side: `rows` rows of `k` values, `stride` values apart, at any alignment.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    data: &'a [u8],
    stride: usize,
    rows: usize,
}

impl<'a> Left<'a> {
    /// Rows of little-endian `f32` bytes.
    pub(crate) fn from_bytes(data: &'a [u8], stride: usize, rows: usize) -> Self {
        Self { data, stride, rows }
    }

    /// Rows of values.
    pub(crate) fn new(values: &'a [f32], stride: usize, rows: usize) -> Self {
        Self::from_bytes(bytes(values), stride, rows)
    }
}

/// Values as the bytes that they are.
pub(crate) fn bytes(values: &[f32]) -> &[u8] {
    // SAFETY: every byte of an `f32` is initialised, and `u8` has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The right side: `k` rows of `lanes` values (readable up to a multiple of 16), `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) lanes: usize,
}

/// Where sums go: row `r`, lane `l` to `start + r * stride + l`, or with both swapped.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    start: *mut f32,
    stride: usize,
    /// Lanes are rows of the output.
    swapped: bool,
    add: bool,
}

impl Target {
    /// The part of a tile that starts `row` rows and `col` columns after its corner.
    fn in_tile(tile: &mut Tile<'_, f32>, row: usize, col: usize, swapped: bool, add: bool) -> Self {
        let (start, stride) = tile.as_mut_ptr();
        // Only pointers are made here; `product` checks nothing, its callers stay in the tile.
        let start = start.wrapping_add(row * stride + col);
        Self {
            start,
            stride,
            swapped,
            add,
        }
    }
}

/// Writes `a · b` over `k` to a buffer of rows `stride` apart, or adds it.
///
/// # Panics
/// A slice is too short.
pub(crate) fn product_into(
    isa: Isa,
    k: usize,
    a: Left<'_>,
    b: Right<'_>,
    out: &mut [f32],
    stride: usize,
    add: bool,
) {
    assert!(a.rows == 0 || out.len() >= (a.rows - 1) * stride + b.lanes);
    assert!(stride >= b.lanes || a.rows <= 1);
    let target = Target {
        start: out.as_mut_ptr(),
        stride,
        swapped: false,
        add,
    };
    product(isa, k, a, b, target);
}

/// Writes `a · b` over `k` with rows of `a` as columns of the tile and lanes as its rows.
///
/// # Panics
/// A slice is too short, or the tile too small.
pub(crate) fn product_into_columns(
    isa: Isa,
    k: usize,
    a: Left<'_>,
    b: Right<'_>,
    tile: &mut Tile<'_, f32>,
    (row, col): (usize, usize),
    add: bool,
) {
    assert!(row + b.lanes <= tile.rows().len() && col + a.rows <= tile.cols().len());
    let target = Target::in_tile(tile, row, col, true, add);
    product(isa, k, a, b, target);
}

/// Writes `a · b` over `k` with rows of `a` as rows of the tile and lanes as its columns.
///
/// # Panics
/// A slice is too short, or the tile too small.
pub(crate) fn product_into_rows(
    isa: Isa,
    k: usize,
    a: Left<'_>,
    b: Right<'_>,
    tile: &mut Tile<'_, f32>,
    (row, col): (usize, usize),
    add: bool,
) {
    assert!(row + a.rows <= tile.rows().len() && col + b.lanes <= tile.cols().len());
    let target = Target::in_tile(tile, row, col, false, add);
    product(isa, k, a, b, target);
}

dispatch! {
    fn product(k: usize, a: Left<'_>, b: Right<'_>, out: Target) = product_body;
}

/// The product; the target is the caller's for all rows and lanes.
#[inline(always)]
fn product_body<S: Vector>(s: S, k: usize, a: Left<'_>, b: Right<'_>, out: Target) {
    if a.rows == 0 || b.lanes == 0 {
        return;
    }
    assert!(a.data.len() >= 4 * ((a.rows - 1) * a.stride + k));
    let vectors = b.lanes.div_ceil(LANES);
    assert!(k == 0 || b.data.len() >= (k - 1) * b.stride + vectors * LANES);
    for row in (0..a.rows).step_by(ROWS) {
        let rows = ROWS.min(a.rows - row);
        // Rows that do not exist are computed as copies of the last one and not stored.
        let base = a.data.as_ptr().cast::<f32>();
        let from: [*const f32; ROWS] =
            std::array::from_fn(|i| base.wrapping_add((row + i.min(rows - 1)) * a.stride));
        let mut vector = 0;
        while vector < vectors {
            let at = b.data[vector * LANES..].as_ptr();
            // SAFETY: the lengths of both sides were checked above; the target is ours.
            vector += unsafe {
                match vectors - vector {
                    _ if !S::WIDE => group::<S, 1>(s, k, from, at, b, out, (row, rows), vector),
                    1 => group::<S, 1>(s, k, from, at, b, out, (row, rows), vector),
                    2 => group::<S, 2>(s, k, from, at, b, out, (row, rows), vector),
                    _ => group::<S, 3>(s, k, from, at, b, out, (row, rows), vector),
                }
            };
        }
    }
}

/// Sums of 8 rows and `N` vectors of lanes, put where they go; returns `N`.
///
/// # Safety
/// Each row has `k` values, `at` has `k` rows of `N` vectors, and the target is the caller's for
/// the rows and the lanes of `b`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn group<S: Vector, const N: usize>(
    s: S,
    k: usize,
    a: [*const f32; ROWS],
    at: *const f32,
    b: Right<'_>,
    out: Target,
    (row, rows): (usize, usize),
    vector: usize,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let all = if S::WIDE && rows > ROWS / 2 {
            sums::<S, ROWS, N>(s, k, a, at, b.stride)
        } else {
            // As many sums as narrow registers hold, or as a query's few heads need.
            let low = sums::<S, 4, N>(s, k, [a[0], a[1], a[2], a[3]], at, b.stride);
            let mut high = low;
            if rows > ROWS / 2 {
                high = sums::<S, 4, N>(s, k, [a[4], a[5], a[6], a[7]], at, b.stride);
            }
            [
                low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3],
            ]
        };
        for n in 0..N {
            let mut column = [all[0][n]; ROWS];
            for i in 0..ROWS {
                column[i] = all[i][n];
            }
            let lane = (vector + n) * LANES;
            store(s, column, out, row, rows, lane, LANES.min(b.lanes - lane));
        }
    }
    N
}

/// `M × N` vectors of sums along `k`.
///
/// # Safety
/// Each row has `k` values, `b` has `k` rows of `N` vectors.
#[inline(always)]
unsafe fn sums<S: Vector, const M: usize, const N: usize>(
    s: S,
    k: usize,
    a: [*const f32; M],
    mut b: *const f32,
    stride: usize,
) -> [[S::V; N]; M] {
    let mut acc = [[s.splat(0.0); N]; M];
    for i in 0..k {
        let mut right = [s.splat(0.0); N];
        for n in 0..N {
            // SAFETY: the caller's promise.
            right[n] = unsafe { s.load(b.add(n * LANES)) };
        }
        for m in 0..M {
            // SAFETY: the caller's promise.
            let left = s.splat(unsafe { a[m].add(i).read_unaligned() });
            for n in 0..N {
                acc[m][n] = s.fma(left, right[n], acc[m][n]);
            }
        }
        b = b.wrapping_add(stride);
    }
    acc
}

/// Writes one vector of lanes of 8 rows.
///
/// # Safety
/// The target is the caller's for `rows` rows from `row` and `lanes` lanes from `lane`.
#[inline(always)]
unsafe fn store<S: Vector>(
    s: S,
    sums: [S::V; ROWS],
    out: Target,
    row: usize,
    rows: usize,
    lane: usize,
    lanes: usize,
) {
    let (r, l) = if out.swapped {
        (1, out.stride)
    } else {
        (out.stride, 1)
    };
    // SAFETY: the caller's promise; full vectors are written only where all lanes and rows are.
    unsafe {
        let at = out.start.add(row * r + lane * l);
        if rows == ROWS && lanes == LANES {
            if out.swapped {
                s.store_transposed(sums, at, out.stride, out.add);
                return;
            }
            for i in 0..ROWS {
                let at = at.add(i * out.stride);
                let before = if out.add { s.load(at) } else { s.splat(0.0) };
                s.store(s.add(before, sums[i]), at);
            }
            return;
        }
        for i in 0..rows {
            let values = s.to_array(sums[i]);
            for j in 0..lanes {
                let at = at.add(i * r + j * l);
                *at = if out.add { *at + values[j] } else { values[j] };
            }
        }
    }
}

/// Activations `[tokens, k]` packed as panels of lanes: panel `p` is `[k, 48]` (the last may be
/// narrower) and starts at `p * 48 * k`.
pub(crate) fn pack(pool: &Pool, x: &[f32], tokens: usize, k: usize, out: &mut [f32]) {
    let isa = Isa::detect();
    let one = |panel: usize, out: &mut [f32]| {
        let first = panel * PANEL;
        let tokens = PANEL.min(tokens - first);
        pack_panel(isa, &x[first * k..], k, tokens, k, out);
    };
    if tokens * k < 1 << 15 {
        for (panel, out) in out.chunks_mut((PANEL * k).max(1)).enumerate() {
            one(panel, out);
        }
    } else {
        pool.split(out, PANEL * k, (1, PANEL * k), |mut tile| {
            let panel = tile.rows().start;
            one(panel, tile.row_mut(panel));
        });
    }
}

/// Values that [`pack`] needs room for.
pub(crate) fn packed_len(tokens: usize, k: usize) -> usize {
    tokens.div_ceil(PANEL) * PANEL * k
}

/// Lanes that a panel of so many tokens takes: a multiple of 16.
pub(crate) fn panel_stride(tokens: usize) -> usize {
    tokens.min(PANEL).next_multiple_of(LANES)
}

dispatch! {
    /// Packs `lanes` rows of `k` values, `stride` apart, as `[k, lanes]` with lanes padded to a
    /// multiple of 16 by zeros.
    pub(crate) fn pack_panel(x: &[f32], stride: usize, lanes: usize, k: usize, out: &mut [f32]) = pack_panel_body;
}

#[inline(always)]
fn pack_panel_body<S: Vector>(
    s: S,
    x: &[f32],
    stride: usize,
    lanes: usize,
    k: usize,
    out: &mut [f32],
) {
    let width = lanes.next_multiple_of(LANES);
    if lanes == 0 || k == 0 {
        return;
    }
    assert!(x.len() >= (lanes - 1) * stride + k && out.len() >= k * width);
    for first in (0..lanes).step_by(LANES) {
        let count = LANES.min(lanes - first);
        let x = &x[first * stride..];
        let full = k / LANES * LANES;
        for at in (0..full).step_by(LANES) {
            let mut block = [s.splat(0.0); LANES];
            for i in 0..count {
                // SAFETY: row `i` has 16 values from `at`, by the check above.
                block[i] = unsafe { s.load(x.as_ptr().add(i * stride + at)) };
            }
            let block = s.transpose(block);
            for i in 0..LANES {
                // SAFETY: row `at + i < k` of the panel has 16 lanes from `first`.
                unsafe { s.store(block[i], out.as_mut_ptr().add((at + i) * width + first)) };
            }
        }
        for at in full..k {
            let column = &mut out[at * width + first..][..LANES];
            for (i, o) in column.iter_mut().enumerate() {
                *o = if i < count { x[i * stride + at] } else { 0.0 };
            }
        }
    }
}

/// Calls `work` with activations packed by [`pack`].
pub(crate) fn with_packed<R>(
    pool: &Pool,
    x: &[f32],
    tokens: usize,
    k: usize,
    work: impl FnOnce(&[f32]) -> R,
) -> R {
    scratch::with(packed_len(tokens, k), |packed| {
        pack(pool, x, tokens, k, packed);
        work(packed)
    })
}
