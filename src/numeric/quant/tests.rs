//! Properties of the codecs as a whole.

use super::encode::{quantize_at, quantize_source_at};
use super::*;
use crate::numeric::float::{Float, decode, encode_bf16, encode_f16};
use crate::numeric::matrix::norm2;
use crate::numeric::simd::Level;
use proptest::prelude::*;

const SCHEMES: [(u8, bool); 8] = [
    (2, true),
    (3, true),
    (4, true),
    (8, true),
    (2, false),
    (3, false),
    (4, false),
    (8, false),
];
const GROUPS: [Group; 6] = [
    Group::Size(32),
    Group::Size(64),
    Group::Size(128),
    Group::Size(5),
    Group::Row,
    Group::Column,
];
const METHODS: [ScaleMethod; 2] = [ScaleMethod::AbsMax, ScaleMethod::Lsq];

fn all_schemes() -> impl Iterator<Item = (Scheme, Group, ScaleMethod)> {
    SCHEMES.into_iter().flat_map(|(bits, symmetric)| {
        GROUPS.into_iter().flat_map(move |group| {
            METHODS
                .into_iter()
                .map(move |method| (Scheme { bits, symmetric }, group, method))
        })
    })
}

/// Weights of varied size: bell-shaped, some outliers, a row of zeros.
fn weights(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    };
    (0..rows * cols)
        .map(|i| {
            let bell = next() + next() + next();
            let spike = if next() > 0.49 { 8.0 } else { 1.0 };
            if i / cols.max(1) == 1 {
                0.0
            } else {
                bell * spike * 0.05
            }
        })
        .collect()
}

#[test]
fn residual_codes_and_sums_agree() {
    for (scheme, group, method) in all_schemes() {
        for (rows, cols) in [(3, 172), (5, 33), (1, 1), (2, 64), (4, 7)] {
            let w = weights(rows, cols, 7);
            let mut residual = w.clone();
            let done = quantize(&mut residual, rows, cols, scheme, group, method).unwrap();
            let what = format!("{scheme:?} {group:?} {method:?} {rows}x{cols}");
            let decoded = done.matrix.decode();
            for i in 0..w.len() {
                assert_eq!(w[i] - decoded[i], residual[i], "{what} at {i}");
            }
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b;
            assert!(close(done.sums.weight, norm2(&w)), "{what}");
            assert!(close(done.sums.residual, norm2(&residual)), "{what}");
            assert_eq!(
                done.matrix.bytes(),
                quantized_bytes(rows, cols, scheme, group),
                "{what}"
            );
            let mut sum = residual.clone();
            done.matrix.add_rows(0..rows, &mut sum);
            for (a, b) in sum.iter().zip(&w) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-3), "{what}");
            }
            let parts = done.matrix.clone();
            let again = QuantMatrix::from_parts(
                rows,
                cols,
                scheme,
                group,
                parts.codes,
                parts.scales,
                parts.zeros,
            );
            assert_eq!(again, Ok(done.matrix), "{what}");
        }
    }
}

#[test]
fn single_weights_decode_as_defined() {
    for (scheme, group, method) in all_schemes() {
        let (rows, cols) = (3, 45);
        let mut w = weights(rows, cols, 3);
        let m = quantize(&mut w, rows, cols, scheme, group, method)
            .unwrap()
            .matrix;
        let decoded = m.decode();
        let zeros = m.unpacked_zeros();
        for r in 0..rows {
            for c in 0..cols {
                let q = i32::from(m.code(r, c)) - i32::from(m.zero(r, c));
                let value = q as f32 * m.scales[m.scale_index(r, c)].to_f32();
                assert_eq!(value, decoded[r * cols + c]);
                if let Some(zeros) = &zeros {
                    assert_eq!(zeros[m.scale_index(r, c)], m.zero(r, c));
                }
                if scheme == Scheme::symmetric(8) {
                    assert_ne!(m.code(r, c), 0);
                }
            }
        }
        let mut tile = vec![0.0; cols];
        m.decode_rows(2..3, &mut tile);
        assert_eq!(tile, decoded[2 * cols..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn every_level_gives_the_same_bits(
        rows in 1usize..5, cols in 1usize..300, seed in any::<u64>(), which in 0usize..96,
    ) {
        let (scheme, group, method) = all_schemes().nth(which).unwrap();
        let w = weights(rows, cols, seed);
        let mut want_residual = w.clone();
        let want = quantize_at(Level::available()[0], &mut want_residual, rows, cols, scheme, group, method).unwrap();
        for level in Level::available() {
            let mut residual = w.clone();
            let got = quantize_at(level, &mut residual, rows, cols, scheme, group, method).unwrap();
            prop_assert_eq!(&got, &want);
            prop_assert_eq!(&residual, &want_residual);
        }
        for (float, bytes) in [(Float::Bf16, encode_bf16(&w)), (Float::F16, encode_f16(&w))] {
            let mut values = vec![0.0; w.len()];
            decode(float, &bytes, &mut values).unwrap();
            let want = quantize_at(Level::available()[0], &mut values.clone(), rows, cols, scheme, group, method).unwrap();
            let direct = quantize_source(Source::F32(&values), rows, cols, scheme, group, method).unwrap();
            prop_assert_eq!(&direct, &want);
            for level in Level::available() {
                let source = Source::Bytes(float, &bytes);
                let got = quantize_source_at(level, source, rows, cols, scheme, group, method).unwrap();
                prop_assert_eq!(&got, &want);
            }
        }
    }

    #[test]
    fn least_squares_is_never_worse(
        rows in 1usize..4, cols in 1usize..200, seed in any::<u64>(), which in 0usize..96,
    ) {
        let (scheme, group, _) = all_schemes().nth(which).unwrap();
        let w = weights(rows, cols, seed);
        let error = |method| quantize(&mut w.clone(), rows, cols, scheme, group, method).unwrap().sums.residual;
        prop_assert!(error(ScaleMethod::Lsq) <= error(ScaleMethod::AbsMax) * (1.0 + 1e-5));
    }

    #[test]
    fn any_finite_weights_are_coded_or_refused(
        w in prop::collection::vec(any::<u32>(), 1..80), which in 0usize..96,
    ) {
        let (scheme, group, method) = all_schemes().nth(which).unwrap();
        let mut w: Vec<f32> = w.into_iter().map(f32::from_bits).collect();
        let cols = w.len();
        let finite = w.iter().all(|x| x.is_finite());
        match quantize(&mut w, 1, cols, scheme, group, method) {
            Ok(done) => {
                prop_assert!(finite);
                prop_assert!(done.matrix.scales.iter().all(|s| s.is_finite() && s.to_f32() > 0.0));
            }
            Err(QuantError::NotFinite { col, .. }) => prop_assert!(!finite && col < cols),
            Err(QuantError::ScaleOverflow { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn absmax_stays_within_half_a_step() {
    for bits in [2, 3, 4, 8] {
        let (rows, cols) = (4, 96);
        let w = weights(rows, cols, 11);
        let mut residual = w.clone();
        let scheme = Scheme::symmetric(bits);
        let m = quantize(
            &mut residual,
            rows,
            cols,
            scheme,
            Group::Size(32),
            ScaleMethod::AbsMax,
        )
        .unwrap()
        .matrix;
        for r in 0..rows {
            for c in 0..cols {
                let scale = m.scales[m.scale_index(r, c)].to_f32();
                // Half a step, and what rounding the scale to 8 bits may cut off.
                let bound = scale * (0.5 + 0.5 * f32::from(scheme.max_code()) / 256.0);
                assert!(
                    residual[r * cols + c].abs() <= bound,
                    "{bits} bits [{r}, {c}]"
                );
            }
        }
    }
}

#[test]
fn relative_errors_are_those_of_the_field() {
    let (rows, cols) = (64, 1024);
    let w = weights(rows, cols, 5)
        .iter()
        .map(|x| x.clamp(-0.07, 0.07))
        .collect::<Vec<_>>();
    let error = |bits, method| {
        let scheme = Scheme::symmetric(bits);
        quantize(&mut w.clone(), rows, cols, scheme, Group::Size(32), method)
            .unwrap()
            .sums
            .relative_error()
    };
    for (bits, bound) in [(8, 0.006), (4, 0.1), (3, 0.22), (2, 0.5)] {
        let absmax = error(bits, ScaleMethod::AbsMax);
        assert!(absmax < bound, "{bits} bits: {absmax}");
        assert!(error(bits, ScaleMethod::Lsq) <= absmax);
    }
}

#[test]
fn zeros_and_empty_matrices() {
    for (scheme, group, method) in all_schemes() {
        for (rows, cols) in [(2, 40), (0, 40), (3, 0), (0, 0)] {
            let mut w = vec![0.0; rows * cols];
            let done = quantize(&mut w, rows, cols, scheme, group, method).unwrap();
            assert_eq!(done.sums, SumsOfSquares::default());
            assert!(done.matrix.decode().iter().all(|&x| x == 0.0));
            assert_eq!(
                done.matrix.bytes(),
                quantized_bytes(rows, cols, scheme, group)
            );
            assert_eq!(done.sums.relative_error(), 0.0);
        }
    }
}

#[test]
fn tiny_weights_keep_their_size() {
    // Far below the normal f16 range: scales are subnormal, yet exact.
    let w: Vec<f32> = (0..32).map(|i| (i as f32 - 15.5) * 1e-5).collect();
    let mut residual = w.clone();
    let done = quantize(
        &mut residual,
        1,
        32,
        Scheme::symmetric(8),
        Group::Size(32),
        ScaleMethod::AbsMax,
    );
    assert!(done.unwrap().sums.relative_error() < 0.02);
    let mut w = vec![1e-30; 32];
    let done = quantize(
        &mut w,
        1,
        32,
        Scheme::symmetric(4),
        Group::Size(32),
        ScaleMethod::Lsq,
    )
    .unwrap();
    assert!(done.matrix.decode().iter().all(|&x| x == 0.0));
}

#[test]
fn bad_weights_are_located() {
    for (scheme, group, method) in all_schemes() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut w = weights(4, 70, 1);
            w[2 * 70 + 66] = bad;
            let bytes = encode_bf16(&w);
            let at = |result: Result<Quantized, QuantError>| match result {
                Err(QuantError::NotFinite { row, col, .. }) => (row, col),
                other => panic!("{other:?}"),
            };
            assert_eq!(at(quantize(&mut w, 4, 70, scheme, group, method)), (2, 66));
            assert_eq!(
                at(quantize_bf16(&bytes, 4, 70, scheme, group, method)),
                (2, 66)
            );
        }
        let mut w = weights(2, 70, 1);
        w[69] = 1e30;
        let result = quantize(&mut w, 2, 70, scheme, group, method);
        assert!(
            matches!(result, Err(QuantError::ScaleOverflow { row: 0, .. })),
            "{result:?}"
        );
    }
    let four = Scheme::symmetric(4);
    let mut w = vec![0.0; 6];
    let mut run =
        |rows, scheme, group| quantize(&mut w, rows, 2, scheme, group, METHODS[0]).unwrap_err();
    assert!(matches!(run(2, four, Group::Row), QuantError::Shape(_)));
    assert!(matches!(
        run(usize::MAX, four, Group::Row),
        QuantError::Shape(_)
    ));
    assert_eq!(run(3, four, Group::Size(0)), QuantError::EmptyGroup);
    assert_eq!(
        run(3, Scheme::symmetric(5), Group::Row),
        QuantError::Bits { bits: 5 }
    );
}

#[test]
fn row_tiles_concatenate() {
    for (scheme, group, method) in all_schemes() {
        if group == Group::Column {
            continue;
        }
        let (rows, cols) = (6, 75);
        let w = weights(rows, cols, 9);
        let whole = quantize(&mut w.clone(), rows, cols, scheme, group, method)
            .unwrap()
            .matrix;
        let tile = |range: std::ops::Range<usize>| {
            let mut part = w[range.start * cols..range.end * cols].to_vec();
            quantize(&mut part, range.len(), cols, scheme, group, method)
                .unwrap()
                .matrix
        };
        let joined = QuantMatrix::concat_rows(vec![tile(0..1), tile(1..5), tile(5..6)]);
        assert_eq!(joined, Ok(whole));
    }
    assert_eq!(QuantMatrix::concat_rows(vec![]), Err(QuantError::Concat));
}

#[test]
fn stored_parts_are_checked() {
    let scheme = Scheme::asymmetric(4);
    let parts = |codes, scales, zeros| {
        QuantMatrix::from_parts(
            2,
            40,
            scheme,
            Group::Size(32),
            vec![0; codes],
            vec![f16::ONE; scales],
            zeros,
        )
    };
    assert!(parts(40, 4, Some(vec![0; 2])).is_ok());
    assert!(parts(39, 4, Some(vec![0; 2])).is_err());
    assert!(parts(40, 3, Some(vec![0; 2])).is_err());
    assert!(parts(40, 4, Some(vec![0; 1])).is_err());
    assert!(parts(40, 4, None).is_err());
    let huge = QuantMatrix::from_parts(
        usize::MAX,
        usize::MAX,
        scheme,
        Group::Row,
        vec![],
        vec![],
        None,
    );
    assert!(huge.is_err());
}

#[test]
fn odd_columns_of_four_bit_sources() {
    let bytes = [0x21, 0x43, 0x65, 0x07, 0x0f];
    let done = quantize_source(
        Source::Bytes(Float::F4E2M1, &bytes),
        3,
        3,
        Scheme::symmetric(8),
        Group::Row,
        ScaleMethod::AbsMax,
    );
    let decoded = done.unwrap().matrix.decode();
    let want = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -6.0];
    for (a, b) in decoded.iter().zip(want) {
        assert!((a - b).abs() < 0.03, "{decoded:?}");
    }
}
