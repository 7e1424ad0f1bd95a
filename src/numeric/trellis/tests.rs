use super::*;
use crate::numeric::simd::Level;
use half::f16;

/// Gaussian samples, by Box and Muller from a splitmix64 stream.
fn gaussian(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n)
        .map(|_| {
            let (u, v) = (1.0 - uniform(), uniform());
            ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        })
        .collect()
}

/// Mean squared error at a scale.
fn mse(encoder: &mut Encoder, (bits, seams): (u8, u8), x: &[f32], scale: f32) -> f64 {
    let mut code = vec![0; tile_bytes(bits)];
    let mut recon = [0.0; SEQUENCE];
    let mut sum = 0.0;
    for x in x.chunks_exact(SEQUENCE) {
        let scaled: Vec<f32> = x.iter().map(|x| x / scale).collect();
        encoder.encode(bits, seams, &scaled, &mut code, &mut recon);
        let errors = x.iter().zip(&recon).map(|(x, y)| f64::from(x - y * scale));
        sum += errors.map(|e| e * e).sum::<f64>();
    }
    sum / x.len() as f64
}

#[test]
fn levels_agree_and_codes_decode_to_what_was_found() {
    let x = gaussian(1, 4 * SEQUENCE);
    for states_log2 in [8, 9, 11, 12, 14] {
        for bits in 1..=8 {
            let mut first = None;
            for level in Level::available() {
                let mut encoder = Encoder::at(level, states_log2).unwrap();
                let mut all = Vec::new();
                for x in x.chunks_exact(SEQUENCE) {
                    let mut code = vec![0; tile_bytes(bits)];
                    let mut recon = [0.0; SEQUENCE];
                    let mut decoded = [0.0; SEQUENCE];
                    encoder.encode(bits, 1, x, &mut code, &mut recon);
                    decode_tile(&code, bits, states_log2, &mut decoded);
                    assert_eq!(recon, decoded, "{states_log2} {bits} {level:?}");
                    all.extend(code);
                }
                let first = first.get_or_insert_with(|| all.clone());
                assert!(*first == all, "{states_log2} {bits} {level:?}");
            }
        }
    }
}

/// Mean squared error by the mean square of the samples, at the best scale.
fn distortion(states_log2: u8, bits: u8, seams: u8, tiles: usize) -> f64 {
    let x = gaussian(1234, tiles * SEQUENCE);
    let variance = x.iter().map(|&x| f64::from(x * x)).sum::<f64>() / x.len() as f64;
    let mut encoder = Encoder::new(states_log2).unwrap();
    let scale = best_scale(states_log2, bits);
    mse(&mut encoder, (bits, seams), &x, scale) / variance
}

#[test]
fn distortion_of_gaussian_samples() {
    let (twelve, sixteen) = (distortion(12, 2, 1, 3907), distortion(16, 2, 1, 160));
    assert!(twelve <= 0.073, "2^12 states: {twelve}");
    assert!(sixteen <= 0.070, "2^16 states: {sixteen}");
    // More seams find better paths.
    let (one, two, four) = (
        distortion(12, 2, 1, 300),
        distortion(12, 2, 2, 300),
        distortion(12, 2, 4, 300),
    );
    assert!(two < 0.999 * one && four <= two, "{one} {two} {four}");
    // A bit more is a quarter of the error, or nearly.
    for bits in 1..8 {
        let ratio = distortion(10, bits, 1, 128) / distortion(10, bits + 1, 1, 128);
        assert!((2.5..4.5).contains(&ratio), "{bits} bits: {ratio}");
    }
}

#[test]
fn scales_are_the_best_ones() {
    let x = gaussian(99, 192 * SEQUENCE);
    for (states_log2, bits) in [(8, 1), (9, 2), (10, 3), (12, 2), (11, 4), (10, 5), (10, 8)] {
        let mut encoder = Encoder::new(states_log2).unwrap();
        let scale = best_scale(states_log2, bits);
        let here = mse(&mut encoder, (bits, 1), &x, scale);
        for factor in [0.92, 1.08] {
            let there = mse(&mut encoder, (bits, 1), &x, scale * factor);
            assert!(
                here < there * 1.01,
                "{states_log2} {bits} {factor}: {here} {there}"
            );
        }
    }
    assert_eq!(best_scale(7, 2), 1.0);
    assert_eq!(best_scale(12, 9), 1.0);
    assert_eq!(best_scale(12, 0), 1.0);
}

#[test]
fn codes_are_centred_sums_of_bytes() {
    for states_log2 in STATES_LOG2 {
        let codes: Vec<i32> = (0..1u32 << states_log2)
            .map(|s| code(s, states_log2, 2))
            .collect();
        assert!(codes.iter().all(|c| (-510..=510).contains(c)));
        let n = codes.len() as f64;
        let mean = codes.iter().map(|&c| f64::from(c)).sum::<f64>() / n;
        let square = codes.iter().map(|&c| f64::from(c * c)).sum::<f64>() / n;
        assert!(mean.abs() < 12.0, "{states_log2}: {mean}");
        assert!(
            (135.0..160.0).contains(&square.sqrt()),
            "{states_log2}: {square}"
        );
    }
}

/// The path of least cost for given shared bits, in `f64` and without any bound.
fn reference(states_log2: u8, bits: u8, x: &[f32]) -> f64 {
    let (n, width) = (1usize << states_log2, 1usize << bits);
    let groups = n / width;
    let value = |s: usize| f64::from(code(s as u32, states_log2, bits)) * f64::from(UNIT);
    let mut least = f64::INFINITY;
    for shared in 0..groups {
        let mut costs = vec![f64::INFINITY; n];
        for (i, &x) in x.iter().rev().enumerate() {
            let before = |g: usize| match i {
                0 if g == shared => 0.0,
                0 => f64::INFINITY,
                _ => (0..width)
                    .map(|p| costs[p * groups + g])
                    .fold(f64::INFINITY, f64::min),
            };
            let next = (0..n).map(|s| before(s / width) + (f64::from(x) - value(s)).powi(2));
            costs = next.collect();
        }
        let ends = (0..width).map(|p| costs[p * groups + shared]);
        least = ends.fold(least, f64::min);
    }
    least
}

#[test]
fn paths_are_nearly_the_best_cyclic_ones() {
    let cases = [(2, 1.02), (4, 1.01), (6, 1.01), (8, 1.001)].map(|(bits, slack)| (bits, 1, slack));
    for (bits, seams, slack) in cases.into_iter().chain([(2, 8, 1.002), (4, 8, 1.002)]) {
        let (mut ours, mut best) = (0.0, 0.0);
        for seed in 0..8 {
            let scale = best_scale(8, bits);
            let x: Vec<f32> = gaussian(seed, SEQUENCE).iter().map(|x| x / scale).collect();
            let mut code = vec![0; tile_bytes(bits)];
            let mut recon = [0.0; SEQUENCE];
            Encoder::new(8)
                .unwrap()
                .encode(bits, seams, &x, &mut code, &mut recon);
            let errors = x.iter().zip(&recon).map(|(x, y)| f64::from(x - y).powi(2));
            ours += errors.sum::<f64>();
            best += reference(8, bits, &x);
        }
        assert!(
            ours >= best * 0.999_999 && ours <= best * slack,
            "{bits} bits, {seams} seams: {ours} {best}"
        );
    }
}

#[test]
fn odd_values_encode_to_something() {
    let mut encoder = Encoder::new(10).unwrap();
    for value in [
        0.0,
        1e30,
        -1e30,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-40,
    ] {
        for bits in 1..=8 {
            let mut code = vec![0; tile_bytes(bits)];
            let (mut recon, mut decoded) = ([0.0; SEQUENCE], [0.0; SEQUENCE]);
            let mut x = [value; SEQUENCE];
            x[7] = 0.5;
            encoder.encode(bits, 1, &x, &mut code, &mut recon);
            decode_tile(&code, bits, 10, &mut decoded);
            assert_eq!(recon, decoded);
            // A few of them do not spoil the rest.
            let mut x = gaussian(3, SEQUENCE);
            x[100] = value;
            encoder.encode(bits, 1, &x, &mut code, &mut recon);
            let errors = x.iter().zip(&recon).enumerate().filter(|(i, _)| *i != 100);
            let error: f32 = errors.map(|(_, (x, y))| (x - y).powi(2)).sum();
            assert!(error < 0.4 * 256.0, "{value} {bits}: {error}");
            if value.abs() > 1e20 {
                assert!(
                    recon[100] * value.signum() > 0.5,
                    "{value} {bits}: {}",
                    recon[100]
                );
            }
        }
    }
}

#[test]
fn a_matrix_is_its_tiles() {
    let (rows, cols) = (37, 50);
    let bits = vec![2, 3, 8, 1];
    let mut codes = Vec::new();
    let mut expected = vec![0.0; rows * cols];
    let scales: Vec<f16> = [0.01, 0.5, 2.0].map(f16::from_f32).to_vec();
    let mut encoder = Encoder::new(9).unwrap();
    for (r, scale) in scales.iter().enumerate() {
        for (c, &k) in bits.iter().enumerate() {
            let mut code = vec![0; tile_bytes(k)];
            let mut recon = [0.0; SEQUENCE];
            encoder.encode(
                k,
                1,
                &gaussian((r * 9 + c) as u64, SEQUENCE),
                &mut code,
                &mut recon,
            );
            codes.extend(code);
            for (i, w) in recon.iter().enumerate() {
                let (row, col) = (r * TILE + i / TILE, c * TILE + i % TILE);
                if row < rows && col < cols {
                    expected[row * cols + col] = scale.to_f32() * w;
                }
            }
        }
    }
    let matrix = TrellisMatrix {
        rows,
        cols,
        states_log2: 9,
        bits,
        codes,
        scales,
    };
    assert_eq!(matrix.decode().unwrap(), expected);
    assert_eq!(matrix.bytes(), 3 * 32 * 14 + 6 + 4);
    assert_eq!(matrix.tile(1, 2).len(), 256);
    assert!(matrix.tile(3, 0).is_empty() && matrix.tile(0, 4).is_empty());
    for row in [0, 15, 16, 36] {
        let mut out = vec![0.0; cols];
        matrix.decode_row(row, &mut out).unwrap();
        assert_eq!(out, expected[row * cols..][..cols]);
    }
}

#[test]
fn damaged_parts_are_refused() {
    let matrix = TrellisMatrix {
        rows: 16,
        cols: 20,
        states_log2: 12,
        bits: vec![2, 3],
        codes: vec![0xA5; 160],
        scales: vec![f16::ONE],
    };
    assert_eq!(matrix.check(), Ok(()));
    let damaged = |change: fn(&mut TrellisMatrix)| {
        let mut other = matrix.clone();
        change(&mut other);
        other.decode().unwrap_err().to_string()
    };
    assert!(damaged(|m| m.states_log2 = 17).contains("2^17"));
    assert!(damaged(|m| m.bits[1] = 9).contains("block 1"));
    assert!(damaged(|m| m.bits.push(2)).contains("bits of column blocks"));
    assert!(damaged(|m| m.codes.truncate(159)).contains("159 code bytes"));
    assert!(damaged(|m| m.scales.clear()).contains("0 scales"));
    assert!(damaged(|m| m.rows = usize::MAX).contains("code bytes"));
    assert!(Encoder::new(7).is_err() && Encoder::new(17).is_err());
    let mut out = [1.0; SEQUENCE];
    decode_tile(&[], 2, 12, &mut out);
    decode_tile(&[1, 2, 3], 8, 16, &mut out);
}

#[test]
fn weights_beyond_the_range_of_scales_are_an_error() {
    let coding = |stretch| Coding {
        states_log2: 8,
        bits: vec![2],
        seams: 1,
        stretch,
    };
    let mut w = gaussian(5, 2 * SEQUENCE);
    w[SEQUENCE..].iter_mut().for_each(|x| *x *= 1e30);
    for (stretch, row) in [(1.0, TILE), (f32::NAN, 0)] {
        let found = quantize(&mut w.clone(), (2 * TILE, TILE), &coding(stretch), None);
        let error = found.expect_err("no scale in f16");
        assert!(
            matches!(error, QuantizeError::Scale { row: at, .. } if at == row),
            "{error}"
        );
    }
}
