//! Terms taken apart into the tensors that are stored.

use half::f16;

use super::{TensorData, TermSpec, format_name};
use crate::numeric::sparse::ColumnIndex;
use crate::numeric::trellis::TrellisMatrix;
use crate::numeric::{Factor, Group, LowRank, QuantMatrix, Sparse};
use crate::weights::DType;

pub(super) fn quant_parts(q: QuantMatrix) -> (TermSpec, Vec<TensorData>) {
    let spec = TermSpec::Quant {
        bits: q.scheme.bits,
        group: q.group.to_string(),
        zeros: q.zeros.is_some(),
        rotation: None,
    };
    let row_bytes = q.codes.len() / q.rows.max(1);
    let scale_shape = match q.group {
        Group::Column => vec![q.cols],
        _ => vec![q.rows, q.scales.len() / q.rows.max(1)],
    };
    let zero_shape = |len: usize| match q.group {
        Group::Column => vec![len],
        _ => vec![q.rows, len / q.rows.max(1)],
    };
    let mut tensors = vec![
        TensorData::new("codes", DType::U8, &[q.rows, row_bytes], q.codes),
        TensorData::new("scales", DType::F16, &scale_shape, f16_bytes(&q.scales)),
    ];
    if let Some(zeros) = q.zeros {
        let shape = zero_shape(zeros.len());
        tensors.push(TensorData::new("zeros", DType::U8, &shape, zeros));
    }
    (spec, tensors)
}

pub(super) fn trellis_parts(t: TrellisMatrix) -> (TermSpec, Vec<TensorData>) {
    let spec = TermSpec::Trellis {
        states: t.states_log2,
        rotation: None,
    };
    let stripes = t.scales.len();
    let shape = [stripes, t.codes.len() / stripes.max(1)];
    let tensors = vec![
        TensorData::new("codes", DType::U8, &shape, t.codes),
        TensorData::new("scales", DType::F16, &[stripes], f16_bytes(&t.scales)),
        TensorData::new("bits", DType::U8, &[t.bits.len()], t.bits),
    ];
    (spec, tensors)
}

/// Mean bits per weight of a trellis matrix's codes.
pub(super) fn trellis_bits(bits: &[u8]) -> f64 {
    let sum: u64 = bits.iter().map(|&b| u64::from(b)).sum();
    sum as f64 / (bits.len() as f64).max(1.0)
}

/// The tensors that a quantizer will make of `[rows, cols]`: suffix, element type, shape.
pub fn quant_tensors(
    q: &crate::pass::Quantizer,
    rows: u64,
    cols: u64,
) -> Vec<(String, DType, Vec<u64>)> {
    let packed = |count: u64| (count * u64::from(q.scheme.bits)).div_ceil(8);
    let (groups, scales, zeros) = match q.group {
        Group::Column => (cols, vec![cols], vec![packed(cols)]),
        Group::Row => (1, vec![rows, 1], vec![rows, packed(1)]),
        Group::Size(size) => {
            let groups = cols.div_ceil(u64::from(size).max(1));
            (groups, vec![rows, groups], vec![rows, packed(groups)])
        }
    };
    let mut tensors = vec![
        ("codes".to_string(), DType::U8, vec![rows, packed(cols)]),
        ("scales".to_string(), DType::F16, scales),
    ];
    if !q.scheme.symmetric && groups > 0 {
        tensors.push(("zeros".to_string(), DType::U8, zeros));
    }
    tensors
}

pub(super) fn low_rank_parts(l: LowRank) -> (TermSpec, Vec<TensorData>) {
    let spec = TermSpec::LowRank {
        blocks: l
            .blocks
            .iter()
            .map(|b| [b.row0, b.rows, b.col0, b.cols, b.rank])
            .collect(),
        format: format_name(l.u.format()).to_string(),
    };
    // One block is stored as two matrices; several are stored flat, one after the other.
    let shapes = match l.blocks.as_slice() {
        [b] => Some(([b.rows, b.rank], [b.rank, b.cols])),
        _ => None,
    };
    let mut tensors = Vec::with_capacity(4);
    factor_parts(l.u, ["u", "u_scales"], shapes.map(|s| s.0), &mut tensors);
    factor_parts(l.v, ["v", "v_scales"], shapes.map(|s| s.1), &mut tensors);
    (spec, tensors)
}

fn factor_parts(
    factor: Factor,
    names: [&'static str; 2],
    shape: Option<[usize; 2]>,
    tensors: &mut Vec<TensorData>,
) {
    let plain = |len: usize| shape.map_or(vec![len], |s| s.to_vec());
    let by_rows = |len: usize| match shape {
        Some([rows, _]) if rows > 0 => vec![rows, len / rows],
        _ => vec![len],
    };
    match factor {
        Factor::F32(values) => {
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let shape = plain(values.len());
            tensors.push(TensorData::new(names[0], DType::F32, &shape, bytes));
        }
        Factor::F16(values) => {
            let shape = plain(values.len());
            let bytes = f16_bytes(&values);
            tensors.push(TensorData::new(names[0], DType::F16, &shape, bytes));
        }
        Factor::Coded { codes, scales, .. } => {
            let shape = by_rows(codes.len());
            tensors.push(TensorData::new(names[0], DType::U8, &shape, codes));
            let shape = by_rows(scales.len());
            let bytes = f16_bytes(&scales);
            tensors.push(TensorData::new(names[1], DType::F16, &shape, bytes));
        }
    }
}

pub(super) fn sparse_parts(s: Sparse) -> (TermSpec, Vec<TensorData>) {
    match s {
        Sparse::Csr {
            values,
            columns,
            offsets,
            ..
        } => {
            let nnz = values.len();
            let (dtype, column_bytes): (_, Vec<u8>) = match columns {
                ColumnIndex::U16(c) => {
                    (DType::U16, c.iter().flat_map(|x| x.to_le_bytes()).collect())
                }
                ColumnIndex::U32(c) => {
                    (DType::U32, c.iter().flat_map(|x| x.to_le_bytes()).collect())
                }
            };
            let offset_bytes = offsets.iter().flat_map(|x| x.to_le_bytes()).collect();
            let tensors = vec![
                TensorData::new("values", DType::F16, &[nnz], f16_bytes(&values)),
                TensorData::new("columns", dtype, &[nnz], column_bytes),
                TensorData::new("offsets", DType::U32, &[offsets.len()], offset_bytes),
            ];
            (TermSpec::Sparse { nnz: nnz as u64 }, tensors)
        }
        Sparse::Columns {
            rows,
            columns,
            values,
            ..
        } => {
            let count = columns.len();
            let column_bytes = columns.iter().flat_map(|x| x.to_le_bytes()).collect();
            let tensors = vec![
                TensorData::new("columns", DType::U32, &[count], column_bytes),
                TensorData::new("values", DType::F16, &[rows, count], f16_bytes(&values)),
            ];
            (
                TermSpec::Columns {
                    count: count as u64,
                },
                tensors,
            )
        }
    }
}

fn f16_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
