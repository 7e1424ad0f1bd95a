//! Every level against `f64`, on random codes of every scheme, group and odd shape.

use super::exact::{Decoder, matmul_at};
use super::*;
use crate::exec::Pool;
use crate::exec::kernels::Write;
use proptest::prelude::*;

/// A matrix of random codes, its scale bytes, and activations.
#[derive(Debug)]
struct Case {
    matrix: QuantMatrix,
    scales: Vec<u8>,
    x: Vec<f32>,
    tokens: usize,
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        (self.next() & 0xffff) as f32 / 32768.0 - 1.0
    }
}

impl Case {
    fn new(
        seed: u64,
        (rows, cols): (usize, usize),
        scheme: Scheme,
        group: Group,
        tokens: usize,
    ) -> Self {
        let mut random = Random(seed);
        let row = |random: &mut Random, count: usize| {
            let codes: Vec<u8> = (0..count)
                .map(|_| random.next() as u8 & scheme.max_code())
                .collect();
            let mut packed = vec![0; packed_len(scheme.bits, count)];
            crate::numeric::quant::pack_row(scheme.bits, &codes, &mut packed);
            packed
        };
        let codes = (0..rows).flat_map(|_| row(&mut random, cols)).collect();
        let count = group.count(rows, cols);
        let scales = (0..count)
            .map(|_| f16::from_f32(0.01 + random.float().abs()))
            .collect();
        let zeros = (!scheme.symmetric).then(|| {
            let lines = if group == Group::Column { 1 } else { rows };
            (0..lines)
                .flat_map(|_| row(&mut random, group.per_row(cols)))
                .collect()
        });
        let matrix =
            QuantMatrix::from_parts(rows, cols, scheme, group, codes, scales, zeros).unwrap();
        let scales = matrix.scale_bytes();
        let x = (0..tokens * cols)
            .map(|i| random.float() * if i % 37 == 0 { 9.0 } else { 1.0 })
            .collect();
        Case {
            matrix,
            scales,
            x,
            tokens,
        }
    }

    fn rows(&self) -> QuantRows<'_> {
        let m = &self.matrix;
        let shape = (m.rows, m.cols);
        QuantRows::new(
            shape,
            m.scheme,
            m.group,
            &m.codes,
            &self.scales,
            m.zeros.as_deref(),
        )
        .unwrap()
    }

    /// The product in `f64`, and how large a rounding error may be.
    fn product(&self, w: &[f32], x: &[f32]) -> Vec<(f64, f64)> {
        let cols = self.matrix.cols;
        let dot = |w: &[f32], x: &[f32]| {
            let pairs = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            pairs.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
        };
        (0..self.tokens)
            .flat_map(|t| (0..self.matrix.rows).map(move |r| (t, r)))
            .map(|(t, r)| dot(&w[r * cols..][..cols], &x[t * cols..][..cols]))
            .collect()
    }

    fn check_exact(&self) {
        let w = self.matrix.decode();
        let want = self.product(&w, &self.x);
        for level in Level::available() {
            for threads in [1, 3] {
                let pool = Pool::new(threads);
                let mut out = vec![1.0; want.len()];
                matmul_at(
                    level,
                    &pool,
                    &self.rows(),
                    &self.x,
                    self.tokens,
                    Write::Add,
                    &mut out,
                );
                for (&got, &(want, size)) in out.iter().zip(&want) {
                    let error = (f64::from(got) - want - 1.0).abs();
                    assert!(error <= 2e-6 * (size + 1.0), "{level:?}: {got} for {want}");
                }
            }
        }
    }

    fn check_decode(&self) {
        let want = self.matrix.decode();
        let w = self.rows();
        let cols = self.matrix.cols;
        for level in Level::available() {
            let decoder = Decoder::new(level, &w);
            for (r, want) in want.chunks(cols).enumerate() {
                let mut out = vec![f32::NAN; cols];
                decoder.decode(r, &mut out);
                assert_eq!(out, want, "{level:?} row {r}");
            }
        }
    }

    /// What each weight would be with the largest code and zero point 0.
    fn largest_weights(&self) -> Vec<f32> {
        let (m, most) = (&self.matrix, f32::from(self.matrix.scheme.max_code()));
        let entries = (0..m.rows).flat_map(|r| (0..m.cols).map(move |c| (r, c)));
        let scale = |(r, c)| match m.group {
            Group::Column => 1.0,
            _ => m.scales[m.scale_index(r, c)].to_f32(),
        };
        entries.map(|at| most * scale(at)).collect()
    }

    /// Weights and activations as the 8-bit product sees them; the largest error of an activation.
    fn emulated(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (m, cols) = (&self.matrix, self.matrix.cols);
        let mut w = m.decode();
        let mut x = self.x.clone();
        if m.group == Group::Column {
            let scales: Vec<f32> = m.scales.iter().map(|s| s.to_f32()).collect();
            for (i, w) in w.iter_mut().enumerate() {
                let (r, c) = (i / cols, i % cols);
                *w = f32::from(m.code(r, c)) - f32::from(m.zero(r, c));
            }
            for (i, x) in x.iter_mut().enumerate() {
                *x *= scales[i % cols];
            }
        }
        let mut steps = Vec::new();
        for x in x.chunks_mut(cols) {
            for x in x.chunks_mut(BLOCK) {
                let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                let inverse = 127.0 / largest;
                for x in x {
                    steps.push(largest / 127.0);
                    *x = (*x * inverse).round_ties_even() * (largest / 127.0);
                }
            }
        }
        (w, x, steps)
    }

    fn check_int8(&self) {
        let (w, x, steps) = self.emulated();
        let want = self.product(&w, &x);
        let truth = self.product(&self.matrix.decode(), &self.x);
        let worst = self.product(&w, &steps);
        // Sums of codes and of zero points are made apart: they may be large where weights are 0.
        let parts = self.product(&self.largest_weights(), &x);
        let most = f64::from(self.matrix.scheme.max_code());
        for level in Level::available() {
            let mut first: Option<Vec<f32>> = None;
            for threads in [1, 2, 3] {
                let pool = Pool::new(threads);
                let a = Int8Activations::quantize_at(
                    level,
                    &pool,
                    &self.x,
                    self.tokens,
                    self.matrix.cols,
                );
                let mut out = vec![1.0; want.len()];
                matmul_int8(&pool, &self.rows(), &a, Write::Overwrite, &mut out);
                for (i, &got) in out.iter().enumerate() {
                    let error = (f64::from(got) - want[i].0).abs();
                    // Sums of codes times activations cancel only afterwards.
                    assert!(
                        error <= 2e-6 * want[i].1 + 1e-7 * most * worst[i].1 + 3e-7 * parts[i].1,
                        "{level:?}: {got} for {:?}",
                        want[i]
                    );
                    let error = (f64::from(got) - truth[i].0).abs();
                    assert!(
                        error <= 0.51 * worst[i].1 + 1e-5 * truth[i].1 + 3e-7 * parts[i].1,
                        "{level:?}: {got} for {:?}",
                        truth[i]
                    );
                }
                if let Some(first) = &first {
                    assert_eq!(&out, first, "{threads} threads");
                }
                first = Some(out.clone());
                matmul_int8(&pool, &self.rows(), &a, Write::Add, &mut out);
                let twice: Vec<f32> = first.iter().flatten().map(|x| x + x).collect();
                assert_eq!(out, twice, "{level:?}: sums");
            }
        }
    }
}

fn groups() -> Vec<Group> {
    [32, 64, 128, 256, 16, 48]
        .map(Group::Size)
        .into_iter()
        .chain([Group::Row, Group::Column])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_level_agrees_with_f64(
        seed in any::<u64>(),
        rows in 1..70usize,
        cols in prop_oneof![1..80usize, 400..700usize, Just(1056usize)],
        bits in prop::sample::select(vec![2u8, 3, 4, 8]),
        symmetric in any::<bool>(),
        group in prop::sample::select(groups()),
        tokens in prop_oneof![1..10usize, 16..20usize],
    ) {
        let case = Case::new(seed, (rows, cols), Scheme { bits, symmetric }, group, tokens);
        case.check_decode();
        case.check_exact();
        case.check_int8();
    }
}

#[test]
fn parts_of_a_wrong_length_are_refused() {
    let case = Case::new(1, (4, 40), Scheme::asymmetric(3), Group::Size(32), 1);
    let m = &case.matrix;
    let zeros = m.zeros.as_deref().unwrap();
    let make = |shape, codes, scales, zeros| {
        QuantRows::new(shape, m.scheme, m.group, codes, scales, zeros)
    };
    assert!(make((4, 40), &m.codes[..], &case.scales[..], Some(zeros)).is_ok());
    assert!(make((5, 40), &m.codes[..], &case.scales[..], Some(zeros)).is_err());
    assert!(make((4, 40), &m.codes[1..], &case.scales[..], Some(zeros)).is_err());
    assert!(make((4, 40), &m.codes[..], &case.scales[2..], Some(zeros)).is_err());
    assert!(make((4, 40), &m.codes[..], &case.scales[..], Some(&zeros[1..])).is_err());
    assert!(make((4, 40), &m.codes[..], &case.scales[..], None).is_err());
    assert!(
        make(
            (usize::MAX, usize::MAX),
            &m.codes[..],
            &case.scales[..],
            Some(zeros)
        )
        .is_err()
    );
}

#[test]
fn activations_that_are_not_finite_show() {
    let mut case = Case::new(7, (20, 96), Scheme::symmetric(4), Group::Size(32), 8);
    case.x[5] = f32::NAN;
    case.x[96 + 5] = f32::INFINITY;
    case.x[2 * 96..3 * 96].fill(0.0);
    for level in Level::available() {
        let pool = Pool::new(1);
        let a = Int8Activations::quantize_at(level, &pool, &case.x, 8, 96);
        let mut out = vec![0.0; 8 * 20];
        matmul_int8(&pool, &case.rows(), &a, Write::Overwrite, &mut out);
        assert!(out[..40].iter().all(|y| !y.is_finite()), "{level:?}");
        assert!(out[40..60].iter().all(|&y| y == 0.0), "{level:?}");
        assert!(out[60..].iter().all(|y| y.is_finite()), "{level:?}");
    }
}

#[test]
fn empty_matrices_are_products_of_zeros() {
    for (rows, cols, tokens) in [(0, 5, 2), (3, 0, 9), (3, 5, 0)] {
        let case = Case::new(
            3,
            (rows, cols),
            Scheme::symmetric(4),
            Group::Size(32),
            tokens,
        );
        for level in Level::available() {
            let pool = Pool::new(2);
            let a = Int8Activations::quantize_at(level, &pool, &case.x, tokens, cols);
            let mut out = vec![5.0; rows * tokens];
            matmul_int8(&pool, &case.rows(), &a, Write::Overwrite, &mut out);
            matmul_at(
                level,
                &pool,
                &case.rows(),
                &case.x,
                tokens,
                Write::Add,
                &mut out,
            );
            assert!(out.iter().all(|&y| y == 0.0));
        }
    }
}
