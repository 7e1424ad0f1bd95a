use super::super::float::tests::noise;
use super::*;
use crate::numeric::float::encode_f16;

/// A random matrix with some entries, and its parts as stored.
fn random(rows: usize, cols: usize) -> (Vec<f32>, [Vec<u8>; 3]) {
    let (mut dense, keep) = (noise(1, rows * cols), noise(2, rows * cols));
    let (mut columns, mut offsets, mut values) = (Vec::new(), vec![0u32], Vec::new());
    for row in 0..rows {
        for col in 0..cols {
            let x = &mut dense[row * cols + col];
            // The first row is empty, the last one full.
            if row > 0 && (row + 1 == rows || keep[row * cols + col] > 0.8) {
                *x = half::f16::from_f32(*x).to_f32();
                values.push(*x);
                columns.push(col as u32);
            } else {
                *x = 0.0;
            }
        }
        offsets.push(values.len() as u32);
    }
    let column = |c: &u32| {
        let bytes = c.to_le_bytes();
        bytes[..if cols > 65536 { 4 } else { 2 }].to_vec()
    };
    let columns = columns.iter().flat_map(column).collect();
    let offsets = offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
    (dense, [encode_f16(&values), columns, offsets])
}

fn check(
    dense: &[f32],
    (rows, cols): (usize, usize),
    tokens: usize,
    product: impl Fn(&Pool, &[f32], Write, &mut [f32]),
) {
    let x = noise(3, tokens * cols);
    let before = noise(4, tokens * rows);
    for write in [Write::Overwrite, Write::Add] {
        let mut first = None;
        for threads in 1..=3 {
            let mut out = before.clone();
            product(&Pool::new(threads), &x, write, &mut out);
            for (i, got) in out.iter().enumerate() {
                let (t, r) = (i / rows, i % rows);
                let terms = dense[r * cols..(r + 1) * cols].iter().zip(&x[t * cols..]);
                let (want, size) = terms.fold((0.0, 0.0), |(sum, size), (w, x)| {
                    let term = f64::from(*w) * f64::from(*x);
                    (sum + term, size + term.abs())
                });
                let added = f64::from(before[i]);
                let want = if write == Write::Add {
                    want + added
                } else {
                    want
                };
                assert!((f64::from(*got) - want).abs() <= 1e-6 * (size + 1.0));
            }
            assert_eq!(&out, first.get_or_insert_with(|| out.clone()));
        }
    }
}

#[test]
fn entries_match_f64() {
    for (rows, cols) in [(1, 1), (40, 33), (300, 70), (3, 70_000)] {
        let (dense, [values, columns, offsets]) = random(rows, cols);
        let w = CsrView {
            rows,
            cols,
            values: &values,
            columns: &columns,
            offsets: &offsets,
        };
        w.check().unwrap();
        for tokens in [0, 1, 2, 17, 40, 64] {
            if cols < 1000 || tokens < 3 {
                check(&dense, (rows, cols), tokens, |pool, x, write, out| {
                    matmul_csr(pool, &w, x, tokens, write, out);
                });
            }
        }
        for row in 0..rows {
            let mut out = vec![0.0; cols];
            add_row_csr(&w, row, &mut out);
            assert_eq!(out, dense[row * cols..(row + 1) * cols]);
        }
    }
}

#[test]
fn columns_match_f64() {
    for (rows, cols, count) in [(30, 50, 7), (30, 50, 0), (130, 4, 4)] {
        let columns: Vec<u32> = (0..count as u32)
            .map(|i| i * (cols / count) as u32)
            .collect();
        let values = encode_f16(&noise(1, rows * count));
        let w = ColumnsView {
            rows,
            cols,
            columns: &columns,
            values: &values,
        };
        let mut dense = vec![0.0; rows * cols];
        for (row, out) in dense.chunks_mut(cols).enumerate() {
            add_row_columns(&w, row, out);
        }
        for tokens in [0, 1, 9] {
            check(&dense, (rows, cols), tokens, |pool, x, write, out| {
                matmul_columns(pool, &w, x, tokens, write, out);
            });
        }
    }
}

#[test]
fn damage_is_told_and_does_no_harm() {
    let (_, [values, columns, offsets]) = random(5, 9);
    let w = CsrView {
        rows: 5,
        cols: 9,
        values: &values,
        columns: &columns,
        offsets: &offsets,
    };
    let shorter = CsrView { cols: 3, ..w };
    assert!(matches!(shorter.check(), Err(SparseError::Column { .. })));
    let mut wrong = offsets.clone();
    wrong[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let tangled = CsrView {
        offsets: &wrong,
        ..w
    };
    assert!(matches!(
        tangled.check(),
        Err(SparseError::Offsets { row: 1 })
    ));
    let cut = CsrView {
        columns: &columns[2..],
        ..w
    };
    assert!(matches!(cut.check(), Err(SparseError::Length { .. })));
    for (w, cols) in [(shorter, 3), (tangled, 9), (cut, 9)] {
        for tokens in [1, 3] {
            let mut out = vec![0.0; 5 * tokens];
            let x = noise(1, tokens * cols);
            matmul_csr(&Pool::new(1), &w, &x, tokens, Write::Overwrite, &mut out);
        }
    }
}
