use super::*;
use crate::exec::kernels::elementwise;
use crate::exec::kernels::vector::Isa;
use crate::numeric::float::{encode_bf16, encode_f16};
use std::sync::Arc;

/// Numbers between -1 and 1 that depend on the seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn stored(format: Float, values: &[f32]) -> Vec<u8> {
    match format {
        Float::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Float::F64 => values
            .iter()
            .flat_map(|&x| f64::from(x).to_le_bytes())
            .collect(),
        Float::F16 => encode_f16(values),
        Float::Bf16 => encode_bf16(values),
        Float::F4E2M1 => (0..values.len().div_ceil(2))
            .map(|i| (i * 29) as u8)
            .collect(),
        _ => (0..values.len()).map(|i| (i * 37 % 120) as u8).collect(),
    }
}

/// The product in `f64`, and the sum of magnitudes that its error is measured by.
fn reference(w: &[f32], transposed: bool, shape: [usize; 3], x: &[f32]) -> Vec<(f64, f64)> {
    let [tokens, rows, cols] = shape;
    let mut out = Vec::new();
    for t in 0..tokens {
        for r in 0..rows {
            let terms = (0..cols).map(|c| {
                let at = if transposed {
                    c * rows + r
                } else {
                    r * cols + c
                };
                f64::from(w[at]) * f64::from(x[t * cols + c])
            });
            out.push(terms.fold((0.0, 0.0), |(sum, size), term| {
                (sum + term, size + term.abs())
            }));
        }
    }
    out
}

fn check(format: Float, transposed: bool, shape: [usize; 3], misaligned: bool) {
    let [tokens, rows, cols] = shape;
    let mut data = vec![0; usize::from(misaligned)];
    data.extend(stored(format, &noise(rows as u64, rows * cols)));
    let data = &data[usize::from(misaligned)..];
    let mut values = vec![0.0; rows * cols];
    decode_into(format, data, &mut values);
    let x = noise(7, tokens * cols);
    let w = FloatRows {
        data,
        format,
        rows,
        cols,
        transposed,
    };
    let want = reference(&values, transposed, shape, &x);
    let before = noise(8, tokens * rows);
    for write in [Write::Overwrite, Write::Add] {
        let mut results = Vec::new();
        for threads in 1..=3 {
            let mut out = before.clone();
            matmul(&Pool::new(threads), &w, &x, tokens, write, &mut out);
            results.push(out);
        }
        for i in 0..want.len() {
            let added = match write {
                Write::Overwrite => 0.0,
                Write::Add => f64::from(before[i]),
            };
            let (sum, size) = want[i];
            let error = (f64::from(results[0][i]) - sum - added).abs();
            let bound = 1e-6 * (size + added.abs()) + 1e-30;
            assert!(
                error <= bound,
                "{format:?} {transposed} {shape:?} {i}: {error:e}"
            );
        }
        assert!(results.iter().all(|r| r == &results[0]), "threads differ");
    }
}

#[test]
fn products_match_f64() {
    let formats = [
        Float::F32,
        Float::F16,
        Float::Bf16,
        Float::F64,
        Float::F8E4M3,
        Float::F4E2M1,
    ];
    let mut seed = 0;
    for format in formats {
        for transposed in [false, true] {
            for shape in [
                [1, 1, 1],
                [1, 37, 50],
                [2, 130, 33],
                [3, 9, 100],
                [4, 17, 17],
                [5, 33, 20],
                [16, 64, 64],
                [49, 70, 31],
                [200, 41, 530],
            ] {
                seed += 1;
                check(format, transposed, shape, seed % 2 == 0);
            }
        }
    }
}

#[test]
fn panels_give_the_same_bits() {
    for [tokens, rows, cols] in [[17, 48, 40], [50, 100, 513], [5, 1, 7], [200, 97, 1030]] {
        let (data, x) = (
            stored(Float::F32, &noise(7, rows * cols)),
            noise(8, tokens * cols),
        );
        let w = FloatRows {
            data: &data,
            format: Float::F32,
            rows,
            cols,
            transposed: true,
        };
        let pool = Pool::new(2);
        let panels = Panels::new(&pool, &w).expect("small");
        for write in [Write::Overwrite, Write::Add] {
            let mut plain = noise(9, tokens * rows);
            let mut kept = plain.clone();
            matmul(&pool, &w, &x, tokens, write, &mut plain);
            panels.matmul(&pool, &w, &x, tokens, write, &mut kept);
            assert_eq!(plain, kept, "{tokens} {rows} {cols}");
        }
        // Two at once, one with a bias.
        let bias = noise(10, rows);
        let mut plain = noise(11, tokens * rows);
        matmul(&pool, &w, &x, tokens, Write::Overwrite, &mut plain);
        let mut biased = plain.clone();
        elementwise::add_row(&pool, &bias, &mut biased);
        let panels = Arc::new(panels);
        let mut made = [noise(12, tokens * rows), noise(13, tokens * rows)];
        let mut biases = [None, Some(bias.as_slice())].into_iter();
        let product = |out| PanelProduct {
            panels: Arc::clone(&panels),
            w,
            bias: biases.next().flatten(),
            out,
        };
        let mut products: Vec<_> = made
            .iter_mut()
            .map(Vec::as_mut_slice)
            .map(product)
            .collect();
        matmul_all(&pool, &mut products, &x, tokens);
        drop(products);
        assert_eq!(made, [plain, biased], "{tokens} {rows} {cols}");
    }
}

#[test]
fn empty_shapes() {
    for transposed in [false, true] {
        for shape in [[0, 3, 4], [2, 0, 4], [2, 3, 0], [7, 3, 0]] {
            check(Float::F32, transposed, shape, false);
        }
    }
}

#[test]
fn rows_decode() {
    let values = noise(3, 7 * 5);
    for format in [Float::F32, Float::F4E2M1] {
        for transposed in [false, true] {
            let data = stored(format, &values);
            let mut all = vec![0.0; 35];
            decode_into(format, &data, &mut all);
            let w = FloatRows {
                data: &data,
                format,
                rows: 7,
                cols: 5,
                transposed,
            };
            let mut row = [0.0; 5];
            decode_row(&w, 3, &mut row);
            for (c, x) in row.into_iter().enumerate() {
                let at = if transposed { c * 7 + 3 } else { 15 + c };
                assert_eq!(x, all[at]);
            }
        }
    }
}

#[test]
fn instruction_sets_agree() {
    let (w, x) = (noise(1, 24 * 70), noise(2, 48 * 70));
    let mut results = Vec::new();
    for isa in Isa::available() {
        let mut packed = vec![0.0; gemm::packed_len(48, 70)];
        gemm::pack_panel(isa, &x, 70, 48, 70, &mut packed);
        let right = Right {
            data: &packed,
            stride: 48,
            lanes: 45,
        };
        let mut out = vec![0.0; 20 * 48];
        gemm::product_into(isa, 70, Left::new(&w, 70, 20), right, &mut out, 48, false);
        results.push(out);
    }
    assert!(results.iter().all(|r| r == &results[0]));
}
