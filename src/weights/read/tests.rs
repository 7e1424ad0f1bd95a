use half::{bf16, f16};

use super::*;

/// Element (r, c) of every matrix here: exact in each float type.
fn value(r: usize, c: usize) -> f32 {
    ((r * 31 + c * 7) % 61) as f32 - 30.0
}

fn encode(dtype: DType, value: f32) -> Vec<u8> {
    match dtype {
        DType::F32 => value.to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        DType::I8 => (value as i8).to_le_bytes().to_vec(),
        other => panic!("not used here: {other}"),
    }
}

fn view(dtype: DType, rows: usize, cols: usize, transposed: bool) -> MatrixView {
    // An odd start: elements are not aligned.
    let mut bytes = vec![0xEE; 3];
    let (outer, inner) = if transposed {
        (cols, rows)
    } else {
        (rows, cols)
    };
    for i in 0..outer {
        for j in 0..inner {
            let (r, c) = if transposed { (j, i) } else { (i, j) };
            bytes.extend(encode(dtype, value(r, c)));
        }
    }
    MatrixView::new(Bytes::from(bytes), 3, dtype, rows, cols, transposed).expect("fits")
}

fn expect(view: &MatrixView, rows: Range<usize>, value: impl Fn(usize, usize) -> f32) {
    let mut out = vec![f32::NAN; rows.len() * view.cols()];
    view.read_rows_f32(rows.clone(), &mut out).expect("reads");
    let mut out = out.into_iter();
    for r in rows {
        for c in 0..view.cols() {
            assert_eq!(out.next(), Some(value(r, c)), "({r}, {c})");
        }
    }
}

#[test]
fn rows_come_out_the_same_from_either_layout() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
        for transposed in [false, true] {
            for (rows, cols) in [(1, 1), (7, 5), (33, 65), (70, 32), (64, 96)] {
                let view = view(dtype, rows, cols, transposed);
                expect(&view, 0..rows, value);
                expect(&view, rows / 3..rows - rows / 4, value);
                expect(&view, 0..0, value);
                expect(&view.transpose(), 0..cols, |r, c| value(c, r));
            }
        }
    }
}

#[test]
fn parts_of_a_matrix() {
    for transposed in [false, true] {
        let whole = view(DType::BF16, 50, 40, transposed);
        let part = whole.row_range(10..45).expect("rows");
        let part = part.column_range(3..38).expect("columns");
        assert_eq!((part.rows(), part.cols()), (35, 35));
        expect(&part, 2..35, |r, c| value(r + 10, c + 3));
        let inner = part.row_range(5..6).expect("one row");
        expect(&inner, 0..1, |r, c| value(r + 15, c + 3));
        assert_eq!(inner.raw_rows(0..1).is_some(), !transposed);
        assert_eq!(part.raw_rows(0..2), None);
        whole.release_rows(0..50);
    }
}

#[test]
fn raw_rows_are_the_stored_bytes() {
    let view = view(DType::BF16, 4, 3, false);
    let expected: Vec<u8> = (0..3)
        .flat_map(|c| encode(DType::BF16, value(2, c)))
        .collect();
    assert_eq!(view.raw_rows(2..3), Some(expected.as_slice()));
    assert_eq!(view.raw_rows(0..4).map(<[u8]>::len), Some(24));
    assert_eq!(view.raw_rows(3..5), None);
}

#[test]
fn packed_rows_may_start_inside_a_byte() {
    // 3 × 3 nibbles: 1..=9.
    let bytes = Bytes::from_static(&[0x21, 0x43, 0x65, 0x87, 0x09]);
    let plain = MatrixView::new(bytes.clone(), 0, DType::U4, 3, 3, false).expect("fits");
    expect(&plain, 1..3, |r, c| (r * 3 + c + 1) as f32);
    assert_eq!(plain.raw_rows(1..2), None);
    assert_eq!(plain.raw_rows(0..2), Some(&[0x21, 0x43, 0x65][..]));
    let turned = MatrixView::new(bytes, 0, DType::U4, 3, 3, true).expect("fits");
    expect(&turned, 0..3, |r, c| (c * 3 + r + 1) as f32);
}

#[test]
fn what_does_not_fit_is_refused() {
    let bytes = Bytes::from(vec![0; 100]);
    let new = |offset, dtype, rows, cols| {
        MatrixView::new(bytes.clone(), offset, dtype, rows, cols, false)
    };
    assert!(new(0, DType::F32, 5, 5).is_ok());
    assert!(matches!(
        new(1, DType::F32, 5, 5),
        Err(WeightsError::OutOfBounds { .. })
    ));
    assert!(matches!(
        new(u64::MAX, DType::F32, 5, 5),
        Err(WeightsError::OutOfBounds { .. })
    ));
    assert!(matches!(
        new(0, DType::F64, usize::MAX, 9),
        Err(WeightsError::View { .. })
    ));
    assert!(matches!(
        new(0, DType::C64, 1, 1),
        Err(WeightsError::View { .. })
    ));
    let view = new(0, DType::F32, 5, 5).expect("fits");
    assert!(view.read_rows_f32(0..5, &mut [0.0; 24]).is_err());
    assert!(view.read_rows_f32(4..6, &mut [0.0; 10]).is_err());
    assert!(view.row_range(5..6).is_err() && view.column_range(0..6).is_err());
    let empty = new(0, DType::F32, usize::MAX, 0).expect("no elements");
    assert!(empty.read_rows_f32(0..9, &mut []).is_ok());
}

#[test]
fn the_fixture_reads() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/stories260K/model.safetensors"
    );
    let file = MappedFile::open(Path::new(path)).expect("fixture");
    let header = super::super::Header::read(&file).expect("valid");
    for tensor in &header.tensors {
        let [rows, cols] = *tensor.shape.as_slice() else {
            continue;
        };
        let (rows, cols) = (rows as usize, cols as usize);
        let view = MatrixView::new(file.clone(), tensor.offset, tensor.dtype, rows, cols, false);
        let mut out = vec![f32::NAN; rows * cols];
        view.expect("fits")
            .read_rows_f32(0..rows, &mut out)
            .expect("reads");
        assert!(
            out.iter().all(|v| v.is_finite() && v.abs() < 100.0),
            "{}",
            tensor.name
        );
    }
}
