//! Bytes of tensors that an export adds, made from a term when they're due.

use half::{bf16, f16};

use super::ExportError;
use super::codes::quant_form;
use crate::ir::{Module, OpRef};
use crate::numeric::quant::packed_len;
use crate::numeric::{Factor, LowRank, QuantMatrix, Side, Sparse};
use crate::pass::terms::{CustomData, TermData};
use crate::pass::{PassError, kind};
use crate::store::Reader;
use crate::weights::DType;

/// Which matrix of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Piece {
    /// The term itself.
    Whole,
    /// A block's left factor, with so many zero rows before and behind it.
    U {
        block: usize,
        before: usize,
        after: usize,
    },
    /// A block's right factor.
    V { block: usize },
    /// All left factors as one matrix `[out, Σ rank]`.
    FlatU,
    /// All right factors as one matrix `[Σ rank, in]`.
    FlatV,
}

/// What is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// Codes by rows, rows padded to whole blocks: `u8[out, blocks, bytes]`.
    Blocks { bits: u8, block: usize },
    /// Codes by rows: `u8[out, bytes]`.
    Rows { bits: u8 },
    /// A scale per row and block; ones for column groups.
    BlockScales { dtype: DType, block: usize },
    /// A packed zero point per row and block.
    BlockZeros { bits: u8, block: usize },
    /// Codes as a plain tensor, `[in, out]` if transposed: i8 or i4 values of
    /// symmetric schemes, u8 or u4 codes of others.
    Grid { bits: u8, transposed: bool },
    /// Scales as DequantizeLinear wants them.
    GridScales { dtype: DType, transposed: bool },
    /// Zero points likewise.
    GridZeros { bits: u8, transposed: bool },
    /// Scales of column groups, `[in]`.
    ColumnScales { dtype: DType },
    /// Values, `[cols, rows]` if transposed.
    Floats { dtype: DType, transposed: bool },
    /// Values of a sparse term in the order of the indices.
    SparseValues { dtype: DType, transposed: bool },
    /// Linear indices, ascending, into `[out, in]`, or `[in, out]` if transposed.
    SparseIndices { transposed: bool },
    /// Numbers of whole columns, `i64`.
    ColumnIndices,
    /// `[count, in]`: row k is one at column k's place.
    OneHot { dtype: DType },
    /// A constant of the form that a plugin gives its term, by its number.
    Custom { constant: usize },
}

/// How to make one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Recipe {
    /// The op of the source module.
    pub(super) at: OpRef,
    /// Which of its terms.
    pub(super) term: usize,
    /// Which part.
    pub(super) piece: Piece,
    /// In which form.
    pub(super) form: Form,
}

impl Recipe {
    /// The tensor's bytes.
    pub(super) fn bytes(
        &self,
        module: &Module,
        reader: &Reader<'_>,
    ) -> Result<Vec<u8>, ExportError> {
        let damaged = |what: &str| ExportError::NoForm {
            op: format!("{:?}", self.at),
            what: format!("{what} ({:?} of {:?})", self.form, self.piece),
        };
        let op = module
            .op(self.at)
            .ok_or_else(|| damaged("the op is gone"))?;
        let matrix = op
            .kind
            .matrix()
            .ok_or_else(|| damaged("the op has no matrix"))?;
        let term = matrix
            .terms
            .get(self.term)
            .ok_or_else(|| damaged("the term is gone"))?;
        let data = reader.term(module, matrix, term)?;
        if let TermData::Custom(custom) = &data {
            let refused = |e: PassError| ExportError::NoForm {
                op: op.name.clone(),
                what: e.to_string(),
            };
            let made = self.of_custom(custom).map_err(refused)?;
            return made.ok_or_else(|| damaged("the term has no such form"));
        }
        self.of(&data)
            .ok_or_else(|| damaged("the term has no such form"))
    }

    /// Of a plugin's term: the decoded matrix, or a constant of the form that the plugin gives.
    fn of_custom(&self, custom: &CustomData) -> Result<Option<Vec<u8>>, PassError> {
        match self.form {
            Form::Floats { dtype, transposed } => {
                let (rows, cols) = (custom.rows, custom.cols);
                let Some(entries) = rows.checked_mul(cols) else {
                    return Ok(None);
                };
                let mut values = vec![0f32; entries];
                custom.add_rows(0..rows, &mut values)?;
                Ok(floats_to(&values, rows, cols, dtype, transposed))
            }
            Form::Custom { constant } => {
                let form = kind::needed(&custom.kind)?.onnx(&custom.view())?;
                let tensor = form.and_then(|f| f.tensors.into_iter().nth(constant));
                Ok(tensor.map(|t| t.bytes))
            }
            _ => Ok(None),
        }
    }

    fn of(&self, data: &TermData) -> Option<Vec<u8>> {
        // Nodes around the codes turn what goes in and comes out.
        let data = match data {
            TermData::Rotated(_, codes) => codes,
            data => data,
        };
        if let Form::Floats { dtype, transposed } = self.form {
            let (values, rows, cols) = floats(data, self.piece)?;
            return floats_to(&values, rows, cols, dtype, transposed);
        }
        if let TermData::Sparse(sparse) = data {
            return sparse_form(sparse, self.form);
        }
        quant_form(&quant(data, self.piece)?, self.form)
    }
}

/// The coded matrix of a piece.
fn quant(data: &TermData, piece: Piece) -> Option<QuantMatrix> {
    match (data, piece) {
        (TermData::Quant(quant), Piece::Whole) => Some(quant.clone()),
        (
            TermData::LowRank(low_rank),
            Piece::U {
                block,
                before,
                after,
            },
        ) => {
            let factor = coded(low_rank, Side::U, block)?;
            Some(with_zero_rows(factor, before, after))
        }
        (TermData::LowRank(low_rank), Piece::V { block }) => coded(low_rank, Side::V, block),
        _ => None,
    }
}

fn coded(low_rank: &LowRank, side: Side, index: usize) -> Option<QuantMatrix> {
    let factor = if side == Side::U {
        &low_rank.u
    } else {
        &low_rank.v
    };
    let Factor::Coded {
        scheme,
        codes,
        scales,
    } = factor
    else {
        return None;
    };
    let group = factor.format().group(side)?;
    let (mut code, mut scale) = (0, 0);
    for (at, block) in low_rank.blocks.iter().enumerate() {
        let (rows, cols) = side.shape(block);
        let (bytes, count) = (
            rows * packed_len(scheme.bits, cols),
            group.count(rows, cols),
        );
        if at == index {
            let codes = codes.get(code..code + bytes)?.to_vec();
            let scales = scales.get(scale..scale + count)?.to_vec();
            return QuantMatrix::from_parts(rows, cols, *scheme, group, codes, scales, None).ok();
        }
        code += bytes;
        scale += count;
    }
    None
}

/// Zero rows have scale zero, so their codes don't matter.
fn with_zero_rows(mut quant: QuantMatrix, before: usize, after: usize) -> QuantMatrix {
    if before + after == 0 {
        return quant;
    }
    let codes = quant.row_bytes();
    let scales = quant.group.per_row(quant.cols);
    quant.codes = [vec![0; before * codes], quant.codes, vec![0; after * codes]].concat();
    let zero = |n: usize| vec![f16::ZERO; n * scales];
    quant.scales = [zero(before), quant.scales, zero(after)].concat();
    quant.rows += before + after;
    quant
}

/// The values of a piece, with rows and columns.
fn floats(data: &TermData, piece: Piece) -> Option<(Vec<f32>, usize, usize)> {
    match (data, piece) {
        (
            TermData::Sparse(Sparse::Columns {
                rows,
                columns,
                values,
                ..
            }),
            Piece::Whole,
        ) => Some((
            values.iter().map(|x| x.to_f32()).collect(),
            *rows,
            columns.len(),
        )),
        (TermData::LowRank(low_rank), piece) => factor_values(low_rank, piece),
        _ => None,
    }
}

fn factor_values(low_rank: &LowRank, piece: Piece) -> Option<(Vec<f32>, usize, usize)> {
    let (u, v) = low_rank.decode_factors();
    let start = |side: Side, index: usize| -> usize {
        let size = |block| {
            let (rows, cols) = side.shape(block);
            rows * cols
        };
        low_rank.blocks.iter().take(index).map(size).sum()
    };
    match piece {
        Piece::Whole => None,
        Piece::U {
            block: index,
            before,
            after,
        } => {
            let block = low_rank.blocks.get(index)?;
            let from = start(Side::U, index);
            let values = u.get(from..from + block.rows * block.rank)?;
            let zeros = |n: usize| vec![0.0; n * block.rank];
            let rows = before + block.rows + after;
            Some((
                [zeros(before), values.to_vec(), zeros(after)].concat(),
                rows,
                block.rank,
            ))
        }
        Piece::V { block: index } => {
            let block = low_rank.blocks.get(index)?;
            let from = start(Side::V, index);
            let values = v.get(from..from + block.rank * block.cols)?;
            Some((values.to_vec(), block.rank, block.cols))
        }
        Piece::FlatU | Piece::FlatV => {
            let ranks: usize = low_rank.blocks.iter().map(|block| block.rank).sum();
            let is_u = piece == Piece::FlatU;
            let (rows, cols) = if is_u {
                (low_rank.rows, ranks)
            } else {
                (ranks, low_rank.cols)
            };
            let mut flat = vec![0.0; rows * cols];
            let mut rank0 = 0;
            for (index, block) in low_rank.blocks.iter().enumerate() {
                let side = if is_u { Side::U } else { Side::V };
                let (n, m) = side.shape(block);
                let values = if is_u { &u } else { &v };
                let (row0, col0) = if is_u {
                    (block.row0, rank0)
                } else {
                    (rank0, block.col0)
                };
                for row in 0..n {
                    let from = start(side, index) + row * m;
                    let to = (row0 + row) * cols + col0;
                    flat.get_mut(to..to + m)?
                        .copy_from_slice(values.get(from..from + m)?);
                }
                rank0 += block.rank;
            }
            Some((flat, rows, cols))
        }
    }
}

fn floats_to(
    values: &[f32],
    rows: usize,
    cols: usize,
    dtype: DType,
    transposed: bool,
) -> Option<Vec<u8>> {
    if !transposed {
        return encode(values.iter().copied(), dtype);
    }
    let order = (0..cols).flat_map(|col| (0..rows).map(move |row| row * cols + col));
    encode(
        order.map(|at| values.get(at).copied().unwrap_or(0.0)),
        dtype,
    )
}

/// Values as little-endian elements of a float type.
pub(super) fn encode(values: impl Iterator<Item = f32>, dtype: DType) -> Option<Vec<u8>> {
    Some(match dtype {
        DType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        DType::F16 => values
            .flat_map(|x| f16::from_f32(x).to_le_bytes())
            .collect(),
        DType::BF16 => values
            .flat_map(|x| bf16::from_f32(x).to_le_bytes())
            .collect(),
        DType::F64 => values.flat_map(|x| f64::from(x).to_le_bytes()).collect(),
        _ => return None,
    })
}

fn sparse_form(sparse: &Sparse, form: Form) -> Option<Vec<u8>> {
    match (sparse, form) {
        (Sparse::Csr { values, .. }, Form::SparseValues { dtype, transposed }) => {
            let order = entries(sparse, transposed);
            encode(
                order
                    .into_iter()
                    .map(|(_, at)| values.get(at).map_or(0.0, |x| x.to_f32())),
                dtype,
            )
        }
        (Sparse::Csr { .. }, Form::SparseIndices { transposed }) => {
            let order = entries(sparse, transposed);
            Some(
                order
                    .into_iter()
                    .flat_map(|(index, _)| (index as i64).to_le_bytes())
                    .collect(),
            )
        }
        (Sparse::Columns { columns, .. }, Form::ColumnIndices) => Some(
            columns
                .iter()
                .flat_map(|&column| i64::from(column).to_le_bytes())
                .collect(),
        ),
        (Sparse::Columns { columns, cols, .. }, Form::OneHot { dtype }) => {
            let ones = columns.iter().flat_map(|&at| {
                (0..*cols).map(move |col| if col == at as usize { 1.0 } else { 0.0 })
            });
            encode(ones, dtype)
        }
        _ => None,
    }
}

/// Linear index and position of each entry, ascending by index.
fn entries(sparse: &Sparse, transposed: bool) -> Vec<(u64, usize)> {
    let Sparse::Csr {
        rows,
        cols,
        columns,
        offsets,
        ..
    } = sparse
    else {
        return Vec::new();
    };
    let mut found = Vec::with_capacity(columns.len());
    for (row, range) in offsets.windows(2).enumerate() {
        let &[from, to] = range else { continue };
        for at in from as usize..to as usize {
            let col = columns.get(at);
            let index = if transposed {
                col * rows + row
            } else {
                row * cols + col
            };
            found.push((index as u64, at));
        }
    }
    found.sort_unstable();
    found
}
