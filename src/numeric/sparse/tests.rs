//! Selection and splitting off, against naive definitions.

use super::*;
use crate::numeric::quant::{Group, ScaleMethod, Scheme, quantize};
use proptest::prelude::*;

const INT4: Scheme = Scheme {
    bits: 4,
    symmetric: true,
};

/// Small weights with a few large ones.
fn spiky(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..rows * cols)
        .map(|_| {
            let spike = if next() > 0.97 { 12.0 } else { 1.0 };
            (next() + next()) * 0.02 * spike
        })
        .collect()
}

proptest! {
    #[test]
    fn magnitude_takes_the_largest(
        w in prop::collection::vec(-4i8..4, 1..200), density in 0.0f64..=1.0,
    ) {
        // Few different values, so that there are ties.
        let w: Vec<f32> = w.into_iter().map(f32::from).collect();
        let got = select_by_magnitude(&w, density).unwrap();
        let mut order: Vec<usize> = (0..w.len()).collect();
        order.sort_by(|&a, &b| w[b].abs().total_cmp(&w[a].abs()).then(a.cmp(&b)));
        let mut want = order[..density_count(density, w.len()).unwrap()].to_vec();
        want.sort_unstable();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn what_is_taken_out_goes_back(
        rows in 1usize..6, cols in 1usize..40, seed in any::<u64>(), density in 0.0f64..=1.0,
    ) {
        let w = spiky(rows, cols, seed);
        let support = select_by_magnitude(&w, density).unwrap();
        let columns = select_columns(&column_energies(&w, rows, cols).unwrap(), cols / 3);
        let mut left = w.clone();
        let csr = Sparse::take(&mut left, rows, cols, &support).unwrap();
        let mut left_columns = w.clone();
        let whole = Sparse::take_columns(&mut left_columns, rows, cols, &columns).unwrap();
        for (term, left) in [(csr, left), (whole, left_columns)] {
            prop_assert_eq!(term.check(), Ok(()));
            let mut back = left.clone();
            term.add_rows(0..rows, &mut back);
            for (x, y) in back.iter().zip(&w) {
                prop_assert!((x - y).abs() <= 1e-7);
            }
            let dense = term.decode();
            let mut again = w.clone();
            term.subtract_rows(0..rows, &mut again);
            prop_assert_eq!(&again, &left);
            let tile = rows / 2;
            let mut rest = vec![0.0; (rows - tile) * cols];
            term.add_rows(tile..rows, &mut rest);
            prop_assert_eq!(&rest[..], &dense[tile * cols..]);
            prop_assert_eq!((term.rows(), term.cols()), (rows, cols));
        }
    }
}

#[test]
fn saving_beats_magnitude_after_the_quantizer() {
    let (rows, cols) = (8, 128);
    let method = ScaleMethod::AbsMax;
    for (symmetric, group) in [true, false]
        .into_iter()
        .flat_map(|symmetric| [Group::Size(32), Group::Row].map(|group| (symmetric, group)))
    {
        let scheme = Scheme { symmetric, ..INT4 };
        let (mut by_saving, mut by_magnitude) = (0.0, 0.0);
        for seed in 0..40 {
            let w = spiky(rows, cols, seed);
            let error = |support: &[usize]| {
                let mut left = w.clone();
                Sparse::take(&mut left, rows, cols, support).unwrap();
                let done = quantize(&mut left, rows, cols, scheme, group, method);
                done.unwrap().sums.residual
            };
            let saving = select_by_saving(&w, rows, cols, 0.02, scheme, group, method).unwrap();
            let magnitude = select_by_magnitude(&w, 0.02).unwrap();
            assert!(saving.len() <= magnitude.len());
            assert!(saving.windows(2).all(|w| w[0] < w[1]));
            assert!(error(&saving) < error(&[]));
            by_saving += error(&saving);
            by_magnitude += error(&magnitude);
        }
        assert!(
            by_saving < by_magnitude,
            "{scheme:?} {group:?}: {by_saving} {by_magnitude}"
        );
    }
}

#[test]
fn csr_layout() {
    let mut w = [0.0, 5.0, 0.0, 0.0, 0.0, 0.0, -3.0, 0.0, 7.0];
    let term = Sparse::take(&mut w, 3, 3, &[1, 6, 8]).unwrap();
    let Sparse::Csr {
        values,
        columns,
        offsets,
        ..
    } = &term
    else {
        panic!("not rows")
    };
    assert_eq!(
        values.iter().map(|x| x.to_f32()).collect::<Vec<_>>(),
        [5.0, -3.0, 7.0]
    );
    assert_eq!(*columns, ColumnIndex::U16(vec![1, 0, 2]));
    assert_eq!(*offsets, [0, 1, 1, 3]);
    assert_eq!(term.bytes(), 3 * 2 + 3 * 2 + 4 * 4);
    assert_eq!((term.nnz(), term.flops_per_token()), (3, 6));
    assert_eq!(w, [0.0; 9]);

    let mut w = vec![0.0; 65537];
    w[65536] = 1.0;
    let term = Sparse::take(&mut w, 1, 65537, &[65536]).unwrap();
    assert!(matches!(&term, Sparse::Csr { columns: ColumnIndex::U32(c), .. } if c == &[65536]));
    assert_eq!(term.bytes(), 2 + 4 + 8);
    assert_eq!(term.decode()[65536], 1.0);
}

#[test]
fn column_layout_and_scores() {
    let mut w = [1.0, 10.0, 2.0, 3.0, -20.0, 4.0];
    let energies = column_energies(&w, 2, 3).unwrap();
    assert_eq!(energies, [10.0, 500.0, 20.0]);
    assert_eq!(select_columns(&energies, 2), [1, 2]);
    assert_eq!(select_columns(&[1.0, 1.0, 1.0], 2), [0, 1]);
    let savings = column_savings(&w, 2, 3, INT4, Group::Row, ScaleMethod::AbsMax).unwrap();
    assert_eq!(select_columns(&savings, 1), [1]);
    let term = Sparse::take_columns(&mut w, 2, 3, &[1]).unwrap();
    assert_eq!(w, [1.0, 0.0, 2.0, 3.0, 0.0, 4.0]);
    assert_eq!(term.bytes(), 4 + 4);
    assert_eq!(term.decode(), [0.0, 10.0, 0.0, 0.0, -20.0, 0.0]);
}

#[test]
fn column_savings_are_the_differences() {
    let (rows, cols) = (6, 70);
    let w = spiky(rows, cols, 8);
    for symmetric in [true, false] {
        let scheme = Scheme { symmetric, ..INT4 };
        for group in [Group::Size(32), Group::Row, Group::Column] {
            let method = ScaleMethod::AbsMax;
            let error = |w: &[f32]| {
                quantize(&mut w.to_vec(), rows, cols, scheme, group, method)
                    .unwrap()
                    .sums
                    .residual
            };
            let savings = column_savings(&w, rows, cols, scheme, group, method).unwrap();
            for (col, saving) in savings.iter().enumerate() {
                let mut without = w.clone();
                (0..rows).for_each(|r| without[r * cols + col] = 0.0);
                let want = error(&w) - error(&without);
                assert!(
                    (saving - want).abs() < 1e-4 * error(&w),
                    "{group:?} {col}: {saving} {want}"
                );
            }
        }
    }
}

#[test]
fn sigma_counts_root_mean_squares() {
    let mut w = vec![0.01; 100];
    w[42] = -3.0;
    assert_eq!(select_by_sigma(&w, 6.0).unwrap(), [42]);
    assert_eq!(select_by_sigma(&[0.0; 4], 3.0).unwrap(), [] as [usize; 0]);
    assert_eq!(select_above(&w, 0.005).len(), 100);
    assert!(select_by_sigma(&w, -1.0).is_err());
    assert!(select_by_sigma(&w, f64::NAN).is_err());
}

#[test]
fn values_beyond_f16_leave_their_remainder() {
    let mut w = [100_000.0, 1.0 + 1.0 / 4096.0, 1e-9];
    let term = Sparse::take(&mut w, 1, 3, &[0, 1, 2]).unwrap();
    assert_eq!(term.decode(), [65504.0, 1.0, 0.0]);
    assert_eq!(w, [100_000.0 - 65504.0, 1.0 / 4096.0, 1e-9]);
}

#[test]
fn bad_input_is_refused() {
    let mut w = [1.0; 6];
    assert!(matches!(
        Sparse::take(&mut w, 2, 2, &[]),
        Err(SparseError::Shape(_))
    ));
    for support in [&[1, 1][..], &[2, 1], &[6]] {
        let result = Sparse::take(&mut w, 2, 3, support);
        assert!(
            matches!(result, Err(SparseError::Index { .. })),
            "{result:?}"
        );
    }
    assert!(Sparse::take_columns(&mut w, 2, 3, &[3]).is_err());
    assert!(Sparse::take_columns(&mut w, 2, 3, &[1, 0]).is_err());
    assert!(select_by_magnitude(&w, 1.5).is_err());
    assert!(select_by_magnitude(&w, f64::NAN).is_err());
    let mut bad = [1.0, f32::NAN, 0.0, 0.0];
    let nan = SparseError::NotFinite { row: 0, col: 1 };
    assert_eq!(Sparse::take(&mut bad, 2, 2, &[1]), Err(nan));
    let result = select_by_saving(&bad, 2, 2, 0.5, INT4, Group::Row, ScaleMethod::Lsq);
    assert_eq!(result, Err(nan));
    assert_eq!(
        column_savings(&bad, 2, 2, INT4, Group::Row, ScaleMethod::Lsq),
        Err(nan)
    );

    let csr = |values: usize, columns: Vec<u16>, offsets: Vec<u32>| {
        let values = vec![f16::ONE; values];
        let columns = ColumnIndex::U16(columns);
        Sparse::Csr {
            rows: 2,
            cols: 3,
            values,
            columns,
            offsets,
        }
        .check()
    };
    assert_eq!(csr(2, vec![0, 1], vec![0, 2, 2]), Ok(()));
    assert!(csr(2, vec![1, 0], vec![0, 2, 2]).is_err());
    assert_eq!(csr(2, vec![1, 0], vec![0, 1, 2]), Ok(()));
    assert!(csr(2, vec![0, 3], vec![0, 2, 2]).is_err());
    assert!(csr(2, vec![0, 1], vec![0, 3, 2]).is_err());
    assert!(csr(2, vec![0, 1], vec![0, 2]).is_err());
    assert!(csr(2, vec![0, 1], vec![1, 2, 2]).is_err());
    assert!(csr(3, vec![0, 1], vec![0, 2, 2]).is_err());
    let columns = |columns: Vec<u32>, values: usize| {
        Sparse::Columns {
            rows: 2,
            cols: 3,
            columns,
            values: vec![f16::ONE; values],
        }
        .check()
    };
    assert_eq!(columns(vec![0, 2], 4), Ok(()));
    assert!(columns(vec![0, 3], 4).is_err());
    assert!(columns(vec![0, 2], 3).is_err());
}

#[test]
fn empty_matrices() {
    for (rows, cols) in [(0, 5), (5, 0), (0, 0)] {
        assert_eq!(select_by_magnitude(&[], 0.5).unwrap(), [] as [usize; 0]);
        let saving = select_by_saving(
            &[],
            rows,
            cols,
            0.5,
            INT4,
            Group::Size(32),
            ScaleMethod::AbsMax,
        );
        assert_eq!(saving, Ok(vec![]));
        let term = Sparse::take(&mut [], rows, cols, &[]).unwrap();
        assert_eq!((term.check(), term.nnz()), (Ok(()), 0));
        assert_eq!(column_energies(&[], rows, cols).unwrap().len(), cols);
    }
}
