use super::super::float::tests::noise;
use super::*;
use crate::numeric::lowrank::LowRank;

fn block(row0: usize, rows: usize, col0: usize, cols: usize, rank: usize) -> Block {
    Block {
        row0,
        rows,
        col0,
        cols,
        rank,
    }
}

/// Stored bytes of both factors: data and scales.
fn stored(factor: &crate::numeric::Factor) -> (Vec<u8>, Option<Vec<u8>>) {
    use crate::numeric::Factor;
    match factor {
        Factor::F32(values) => (values.iter().flat_map(|x| x.to_le_bytes()).collect(), None),
        Factor::F16(values) => (values.iter().flat_map(|x| x.to_le_bytes()).collect(), None),
        Factor::Coded { codes, scales, .. } => {
            let scales = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
            (codes.clone(), Some(scales))
        }
    }
}

fn check(rows: usize, cols: usize, blocks: &[Block], format: FactorFormat, tokens: usize) {
    let count = |side: Side| -> usize {
        let size = |b: &Block| side.shape(b).0 * side.shape(b).1;
        blocks.iter().map(size).sum()
    };
    let (u, v) = (noise(1, count(Side::U)), noise(2, count(Side::V)));
    let term = LowRank::encode(rows, cols, blocks.to_vec(), u, v, format).unwrap();
    let (u, v) = (stored(&term.u), stored(&term.v));
    let data = |(data, scales): &'_ (Vec<u8>, Option<Vec<u8>>)| (data.clone(), scales.clone());
    let ((u, u_scales), (v, v_scales)) = (data(&u), data(&v));
    let view = LowRankView {
        rows,
        cols,
        blocks,
        u: FactorData {
            format,
            data: &u,
            scales: u_scales.as_deref(),
        },
        v: FactorData {
            format,
            data: &v,
            scales: v_scales.as_deref(),
        },
    };
    view.check().unwrap();
    let mut dense = vec![0.0; rows * cols];
    for (row, values) in dense.chunks_mut(cols.max(1)).enumerate() {
        add_row(&Pool::new(1), &view, row, values);
    }
    let x = noise(3, tokens * cols);
    let before = noise(4, tokens * rows);
    for write in [Write::Overwrite, Write::Add] {
        let mut first = None;
        for threads in 1..=3 {
            let mut out = before.clone();
            matmul(&Pool::new(threads), &view, &x, tokens, write, &mut out);
            for t in 0..tokens {
                for r in 0..rows {
                    let w = &dense[r * cols..(r + 1) * cols];
                    let terms = w.iter().zip(&x[t * cols..]);
                    let want: f64 = terms.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let added = f64::from(before[t * rows + r]);
                    let want = if write == Write::Add {
                        want + added
                    } else {
                        want
                    };
                    let got = f64::from(out[t * rows + r]);
                    assert!(
                        (got - want).abs() < 2e-4,
                        "{format:?} {tokens} {r}: {got} {want}"
                    );
                }
            }
            assert_eq!(&out, first.get_or_insert_with(|| out.clone()));
        }
    }
}

#[test]
fn products_match_f64() {
    use FactorFormat::{F16, F32, Int4, Int8};
    for format in [F32, F16, Int8, Int4] {
        for tokens in [1, 3, 70] {
            // One block, at a rank where its product is multiplied out for many tokens as well.
            check(40, 33, &[block(0, 40, 0, 33, 5)], format, tokens);
            check(40, 33, &[block(0, 40, 0, 33, 30)], format, tokens);
            // Levels that overlap, an empty block, a block that no tile's edge meets.
            let levels = [
                block(0, 300, 0, 50, 3),
                block(0, 150, 0, 20, 2),
                block(7, 20, 20, 30, 0),
                block(130, 170, 20, 30, 20),
            ];
            check(300, 50, &levels, format, tokens);
            // Leaves that tile the matrix.
            let leaf = |i: usize| block(i % 4 * 20, 20, i / 4 * 16, 16, 1 + i % 3);
            let leaves: Vec<Block> = (0..16).map(leaf).collect();
            check(80, 64, &leaves, format, tokens);
        }
    }
    check(4, 5, &[], F32, 3);
    check(4, 5, &[block(0, 4, 0, 5, 2)], F32, 0);
}

#[test]
fn wrong_lengths_are_told() {
    let data = [0; 40];
    let fits = [block(0, 4, 0, 5, 2)];
    let outside = [block(usize::MAX, 4, 0, 5, 2)];
    let factor = FactorData {
        format: FactorFormat::F32,
        data: &data[..36],
        scales: None,
    };
    let mut view = LowRankView {
        rows: 4,
        cols: 5,
        blocks: &fits,
        u: factor,
        v: FactorData {
            data: &data,
            ..factor
        },
    };
    assert!(matches!(
        view.check(),
        Err(LowRankError::Length { side: Side::U, .. })
    ));
    view.blocks = &outside;
    assert!(matches!(
        view.check(),
        Err(LowRankError::Outside { index: 0, .. })
    ));
}
