use super::*;
use crate::exec::Pool;
use crate::exec::kernels::Write;
use crate::exec::kernels::quant::Int8Activations;

/// Pseudo-random bytes.
fn bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..n).map(|_| next()).collect()
}

fn floats(seed: u64, n: usize) -> Vec<f32> {
    let pairs = bytes(seed, 2 * n);
    let pairs = pairs.as_chunks::<2>().0.iter();
    pairs
        .map(|&b| f32::from(i16::from_le_bytes(b)) / 20_000.0)
        .collect()
}

/// Any bits are a matrix.
fn matrix((rows, cols): (usize, usize), states_log2: u8, bits: &[u8]) -> TrellisMatrix {
    let bits: Vec<u8> = bits
        .iter()
        .copied()
        .cycle()
        .take(cols.div_ceil(TILE))
        .collect();
    let stripes = rows.div_ceil(TILE);
    let size = stripes * TrellisMatrix::stripe_bytes(&bits);
    TrellisMatrix {
        rows,
        cols,
        states_log2,
        codes: bytes(size as u64 + u64::from(states_log2), size),
        scales: (0..stripes)
            .map(|i| f16::from_f32(0.01 + 0.003 * i as f32))
            .collect(),
        bits,
    }
}

fn scale_bytes(m: &TrellisMatrix) -> Vec<u8> {
    m.scales.iter().flat_map(|s| s.to_le_bytes()).collect()
}

fn view<'a>(m: &'a TrellisMatrix, scales: &'a [u8]) -> TrellisRows<'a> {
    TrellisRows::new((m.rows, m.cols), m.states_log2, &m.bits, &m.codes, scales).unwrap()
}

const SHAPES: [(usize, usize); 5] = [(16, 16), (5, 7), (37, 50), (96, 576), (50, 1100)];
const BITS: [&[u8]; 4] = [&[2], &[1, 2, 3, 4, 5, 6, 7, 8], &[8], &[3, 4]];

#[test]
fn tiles_decode_alike_at_every_level() {
    for bits in 1..=8 {
        for states_log2 in 8..=16 {
            let tile = bytes(
                u64::from(bits) * 31 + u64::from(states_log2),
                tile_bytes(bits),
            );
            let mut expected = [0; SEQUENCE];
            scalar::decode_tile(&tile, bits, states_log2, &mut expected);
            for level in Level::available() {
                let mut out = [1; SEQUENCE];
                decode_tile(level, &tile, bits, states_log2, &mut out);
                assert!(out == expected, "{bits} {states_log2} {level:?}");
            }
        }
    }
}

#[test]
fn rows_are_those_of_the_matrix() {
    for (shape, bits) in SHAPES.into_iter().zip(BITS.into_iter().cycle()) {
        let m = matrix(shape, 12, bits);
        let (scales, expected) = (scale_bytes(&m), m.decode().unwrap());
        for row in [0, shape.0 / 2, shape.0 - 1] {
            let mut out = vec![0.0; shape.1];
            decode_rows(&view(&m, &scales), row..row + 1, &mut out);
            assert_eq!(out, expected[row * shape.1..][..shape.1]);
        }
    }
}

#[test]
fn exact_products_match_a_reference_at_every_level() {
    let pools = [Pool::new(1), Pool::new(3)];
    for (shape, bits) in SHAPES.into_iter().zip(BITS.into_iter().cycle()) {
        let m = matrix(shape, 11, bits);
        let (scales, weights) = (scale_bytes(&m), m.decode().unwrap());
        for tokens in [0, 1, 3, 5, 60] {
            let x = floats(9, tokens * shape.1);
            let before = floats(2, tokens * shape.0);
            let mut first = None;
            for level in Level::available() {
                for pool in &pools {
                    let mut out = before.clone();
                    let w = view(&m, &scales);
                    exact::matmul_at(level, pool, &w, &x, tokens, Write::Add, &mut out);
                    let first = first.get_or_insert_with(|| out.clone());
                    assert!(*first == out, "{shape:?} {tokens} {level:?}");
                }
            }
            let out = first.unwrap();
            for (i, out) in out.iter().enumerate() {
                let (t, r) = (i / shape.0, i % shape.0);
                let row = weights[r * shape.1..][..shape.1].iter();
                let products = row
                    .zip(&x[t * shape.1..])
                    .map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (sum, size) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                let error = (f64::from(*out) - f64::from(before[i]) - sum).abs();
                assert!(error <= 1e-6 * (size + 1.0), "{shape:?} {tokens}: {error}");
            }
        }
    }
}

#[test]
fn int8_products_match_a_reference_at_every_level() {
    let pools = [Pool::new(1), Pool::new(3)];
    for (shape, bits) in SHAPES.into_iter().zip(BITS.into_iter().cycle()) {
        let m = matrix(shape, 13, bits);
        let (scales, weights) = (scale_bytes(&m), m.decode().unwrap());
        for tokens in [0, 1, 2, 5, 70] {
            let x = floats(77, tokens * shape.1);
            let activations = Int8Activations::quantize(&pools[0], &x, tokens, shape.1);
            let mut first = None;
            for level in Level::available() {
                for pool in &pools {
                    let mut out = vec![1.0; tokens * shape.0];
                    let w = view(&m, &scales);
                    int8::matmul_at(level, pool, &w, &activations, Write::Overwrite, &mut out);
                    let first = first.get_or_insert_with(|| out.clone());
                    assert!(*first == out, "{shape:?} {tokens} {level:?}");
                }
            }
            let rounded: Vec<f32> = activations.by_token(|codes| {
                let token = |t| {
                    let (codes, scales) = codes.token(t);
                    let blocks = codes.iter().zip(scales);
                    let values = blocks.flat_map(|(q, a)| q.map(|q| f32::from(q) * a));
                    values.take(shape.1).collect::<Vec<_>>()
                };
                (0..tokens).flat_map(token).collect()
            });
            for (i, out) in first.unwrap().iter().enumerate() {
                let (t, r) = (i / shape.0, i % shape.0);
                let row = weights[r * shape.1..][..shape.1].iter();
                let x = &rounded[t * shape.1..];
                let products = row.zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (sum, size) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                let error = (f64::from(*out) - sum).abs();
                assert!(error <= 1e-6 * (size + 1e-3), "{shape:?} {tokens}: {error}");
            }
        }
    }
}

#[test]
fn parts_of_other_lengths_are_refused() {
    let m = matrix((20, 40), 12, &[2, 3]);
    let scales = scale_bytes(&m);
    let new = |codes: &[u8], scales: &[u8], bits: &[u8]| {
        TrellisRows::new((20, 40), 12, bits, codes, scales).map(|_| ())
    };
    assert_eq!(new(&m.codes, &scales, &m.bits), Ok(()));
    assert!(new(&m.codes[1..], &scales, &m.bits).is_err());
    assert!(new(&m.codes, &scales[1..], &m.bits).is_err());
    assert!(new(&m.codes, &scales, &m.bits[1..]).is_err());
    assert!(new(&m.codes, &scales, &[2, 3, 0]).is_err());
    assert!(TrellisRows::new((20, 40), 17, &m.bits, &m.codes, &scales).is_err());
    let empty = TrellisRows::new((0, 0), 12, &[], &[], &[]).unwrap();
    matmul_exact(&Pool::new(1), &empty, &[], 3, Write::Overwrite, &mut []);
}
