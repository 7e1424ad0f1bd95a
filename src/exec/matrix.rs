//! A matrix `Σ terms`, located and checked once, multiplied straight from the mapped files.

mod custom;
mod gradient;
mod kept;
mod prepare;
mod release;
mod together;

use super::activations::{Coordinates, Forms, Need};
use super::kernels::low_rank::{FactorData, LowRankView};
use super::kernels::quant::{self, QuantRows};
use super::kernels::sparse::{self, ColumnsView, CsrView};
use super::kernels::trellis::{self, TrellisRows};
use super::kernels::{Write, float, low_rank};
use super::{ExecError, Pool, Without};
use crate::ir::{
    FactorRef, LowRankTerm, Matrix, Module, QuantTerm, Rotation, SparseTerm, Term, TrellisTerm,
    WeightId, WeightView,
};
use crate::numeric::float::Float;
use crate::numeric::hadamard::Rotation as Side;
use crate::numeric::{Block, FactorFormat, Group, Scheme};
use crate::store::{Located, Reader, StoreError};
use crate::weights::read::decode_f32;
use crate::weights::{DType, WeightsError};
use kept::Kept;
use std::ops::Range;

/// A matrix `[out, in]`, ready to be multiplied.
pub(super) struct PreparedMatrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    terms: Vec<PreparedTerm>,
}

enum PreparedTerm {
    Dense {
        data: Stored,
        format: Float,
        transposed: bool,
        kept: Kept,
    },
    Quant {
        codes: Stored,
        scales: Stored,
        zeros: Option<Stored>,
        scheme: Scheme,
        group: Group,
        rotation: Option<Sides>,
    },
    Trellis {
        codes: Stored,
        scales: Stored,
        bits: Vec<u8>,
        states_log2: u8,
        rotation: Option<Sides>,
    },
    LowRank {
        blocks: Vec<Block>,
        u: Factor,
        v: Factor,
    },
    Csr {
        values: Stored,
        columns: Stored,
        offsets: Stored,
    },
    Columns {
        columns: Vec<u32>,
        values: Stored,
    },
    Custom(custom::PreparedCustom),
}

/// The coordinates of a term's inputs and outputs.
#[derive(Clone, Copy)]
struct Sides {
    input: Option<Side>,
    output: Option<Side>,
}

impl Sides {
    fn of(rotation: Rotation) -> Self {
        let turned = |side: Side| (!side.is_identity()).then_some(side);
        Self {
            input: turned(rotation.in_side()),
            output: turned(rotation.out_side()),
        }
    }
}

struct Factor {
    format: FactorFormat,
    data: Stored,
    scales: Option<Stored>,
}

/// Bytes in a file, and whose they are.
struct Stored {
    located: Located,
    weight: String,
}

impl Stored {
    fn bytes(&self) -> Result<&[u8], ExecError> {
        let fault = |source| StoreError::Weights {
            weight: self.weight.clone(),
            source,
        };
        // `Engine` looks at the files' lengths before each run.
        Ok(self.located.mapped().map_err(fault)?)
    }

    /// Refuses a length that the term does not ask for.
    fn expect(self, bytes: usize) -> Result<Self, ExecError> {
        if self.located.len == bytes as u64 {
            return Ok(self);
        }
        let problem = format!("{} bytes where the term needs {bytes}", self.located.len);
        Err(damaged(&self.weight, problem))
    }
}

fn damaged(weight: &str, problem: String) -> ExecError {
    ExecError::Store(StoreError::Damaged {
        weight: weight.to_string(),
        problem,
    })
}

/// A small weight as f32: norms' gains, biases.
pub(super) fn floats(
    module: &Module,
    reader: &Reader,
    id: WeightId,
) -> Result<Vec<f32>, ExecError> {
    let absent = || StoreError::Absent(id.to_string());
    let weight = module.weight(id).ok_or_else(absent)?;
    let located = reader.locate(module, weight)?;
    let fault = |source: WeightsError| StoreError::Weights {
        weight: weight.name.clone(),
        source,
    };
    let count: u64 = weight.dims.iter().product();
    let count = usize::try_from(count).map_err(|_| StoreError::TooLarge(weight.name.clone()))?;
    let mut values = vec![0f32; count];
    let bytes = located.bytes().map_err(fault)?;
    if decode_f32(weight.dtype, bytes, &mut values) {
        return Ok(values);
    }
    let problem = format!("{} values of {} cannot be read", count, weight.dtype);
    Err(damaged(&weight.name, problem))
}

struct Preparer<'a> {
    module: &'a Module,
    reader: &'a Reader<'a>,
    rows: usize,
    cols: usize,
}

impl PreparedMatrix {
    /// Locates the terms of a matrix, those left out apart.
    pub(super) fn new(
        module: &Module,
        reader: &Reader,
        matrix: &Matrix,
        without: Without,
    ) -> Result<Self, ExecError> {
        let too_large = || StoreError::TooLarge("of a matrix".to_string());
        let rows = usize::try_from(matrix.out_features).map_err(|_| too_large())?;
        let cols = usize::try_from(matrix.in_features).map_err(|_| too_large())?;
        rows.checked_mul(cols).ok_or_else(too_large)?;
        let preparer = Preparer {
            module,
            reader,
            rows,
            cols,
        };
        let kept = matrix.terms.iter().filter(|t| match t {
            Term::LowRank(_) => !without.low_rank,
            Term::Sparse(_) | Term::Columns(_) => !without.sparse,
            Term::Dense(_) | Term::Quant(_) | Term::Trellis(_) | Term::Custom(_) => true,
        });
        let terms: Result<Vec<PreparedTerm>, ExecError> = kept.map(|t| preparer.term(t)).collect();
        Ok(Self {
            rows,
            cols,
            terms: terms?,
        })
    }

    /// The forms in which the terms take activations.
    pub(super) fn needs(&self) -> impl Iterator<Item = Need> + '_ {
        self.terms.iter().map(|term| match term {
            PreparedTerm::Quant { rotation, .. } | PreparedTerm::Trellis { rotation, .. } => Need {
                side: rotation.and_then(|r| r.input),
                codes: true,
            },
            _ => Need {
                side: None,
                codes: false,
            },
        })
    }

    /// `x Wᵀ` for `x` `[tokens, in]` with exact activations.
    pub(super) fn multiply_exact(
        &self,
        pool: &Pool,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), ExecError> {
        let coordinates = Coordinates::new(pool, x, self.cols, self.needs());
        let forms = coordinates.forms(pool, |_| false);
        Self::multiply_all(pool, &forms, &mut [(self, out)])
    }

    fn add_term(
        &self,
        pool: &Pool,
        term: &PreparedTerm,
        forms: &Forms<'_>,
        write: Write,
        out: &mut [f32],
    ) -> Result<(), ExecError> {
        let (x, tokens) = (forms.plain(), forms.tokens);
        match term {
            PreparedTerm::Dense {
                data,
                format,
                transposed,
                kept,
            } => {
                let w = self.float_rows(data.bytes()?, *format, *transposed);
                match kept.panels(pool, &w, tokens) {
                    Some(panels) => panels.matmul(pool, &w, x, tokens, write, out),
                    None => float::matmul(pool, &w, x, tokens, write, out),
                }
            }
            PreparedTerm::Trellis { rotation, .. } => {
                let w = self.trellis_rows(term)?;
                let (x, rounded) = forms.of(rotation.and_then(|r| r.input));
                match rounded {
                    Some(rounded) => trellis::matmul_int8(pool, &w, rounded, write, out),
                    None => trellis::matmul_exact(pool, &w, x, tokens, write, out),
                }
            }
            PreparedTerm::Quant { rotation, .. } => {
                let w = self.quant_rows(term)?;
                let (x, rounded) = forms.of(rotation.and_then(|r| r.input));
                match rounded {
                    Some(rounded) => quant::matmul_int8(pool, &w, rounded, write, out),
                    None => quant::matmul_exact(pool, &w, x, tokens, write, out),
                }
            }
            PreparedTerm::LowRank { blocks, u, v } => {
                let view = LowRankView {
                    rows: self.rows,
                    cols: self.cols,
                    blocks,
                    u: u.view()?,
                    v: v.view()?,
                };
                low_rank::matmul(pool, &view, x, tokens, write, out);
            }
            PreparedTerm::Csr {
                values,
                columns,
                offsets,
            } => {
                let view = self.csr(values, columns, offsets)?;
                sparse::matmul_csr(pool, &view, x, tokens, write, out);
            }
            PreparedTerm::Columns { columns, values } => {
                let view = self.columns(columns, values)?;
                sparse::matmul_columns(pool, &view, x, tokens, write, out);
            }
            PreparedTerm::Custom(custom) => {
                self.multiply_custom(pool, custom, x, tokens, write, out)?;
            }
        }
        Ok(())
    }

    /// Row `row` of the matrix, for embeddings.
    pub(super) fn row(&self, pool: &Pool, row: usize, out: &mut [f32]) -> Result<(), ExecError> {
        out.fill(0.0);
        let mut scratch = vec![0f32; self.cols];
        for term in &self.terms {
            match term {
                PreparedTerm::Dense {
                    data,
                    format,
                    transposed,
                    ..
                } => {
                    let w = self.float_rows(data.bytes()?, *format, *transposed);
                    float::decode_row(&w, row, &mut scratch);
                    add(out, &scratch);
                }
                PreparedTerm::Quant { rotation, .. } => {
                    let w = self.quant_rows(term)?;
                    let decode = |rows: Range<usize>, out: &mut [f32]| {
                        let each = rows.zip(out.chunks_mut(self.cols.max(1)));
                        each.for_each(|(row, out)| quant::decode_row(&w, row, out));
                    };
                    self.row_of(*rotation, row, &mut scratch, decode);
                    add(out, &scratch);
                }
                PreparedTerm::Trellis { rotation, .. } => {
                    let w = self.trellis_rows(term)?;
                    let decode =
                        |rows: Range<usize>, out: &mut [f32]| trellis::decode_rows(&w, rows, out);
                    self.row_of(*rotation, row, &mut scratch, decode);
                    add(out, &scratch);
                }
                PreparedTerm::LowRank { blocks, u, v } => {
                    let view = LowRankView {
                        rows: self.rows,
                        cols: self.cols,
                        blocks,
                        u: u.view()?,
                        v: v.view()?,
                    };
                    low_rank::add_row(pool, &view, row, out);
                }
                PreparedTerm::Csr {
                    values,
                    columns,
                    offsets,
                } => sparse::add_row_csr(&self.csr(values, columns, offsets)?, row, out),
                PreparedTerm::Columns { columns, values } => {
                    sparse::add_row_columns(&self.columns(columns, values)?, row, out);
                }
                PreparedTerm::Custom(custom) => self.add_custom_row(custom, row, out)?,
            }
        }
        Ok(())
    }

    /// Row `row` of a term in its matrix's coordinates.
    fn row_of(
        &self,
        rotation: Option<Sides>,
        row: usize,
        out: &mut [f32],
        decode: impl Fn(Range<usize>, &mut [f32]),
    ) {
        match rotation.and_then(|r| r.output) {
            None => decode(row..row + 1, out),
            Some(side) => {
                // A row is a sum over the rows of its block: column `row` of H, with its sign.
                let first = row / side.block * side.block;
                let norm = side.sign(row) / (side.block as f32).sqrt();
                // Codes of a trellis come in tiles of 16 rows.
                let mut some = vec![0f32; self.cols * side.block.min(16)];
                out.fill(0.0);
                for start in (first..first + side.block).step_by(16) {
                    let rows = start..(start + 16).min(first + side.block);
                    decode(rows.clone(), &mut some);
                    let each = rows.zip(some.chunks(self.cols.max(1)));
                    for (other, one) in each {
                        let odd = ((other - first) & (row - first)).count_ones() % 2 == 1;
                        let factor = if odd { -norm } else { norm };
                        out.iter_mut().zip(one).for_each(|(o, x)| *o += factor * x);
                    }
                }
            }
        }
        if let Some(side) = rotation.and_then(|r| r.input) {
            side.unrotate_rows(out, self.cols);
        }
    }

    fn trellis_rows<'a>(&self, term: &'a PreparedTerm) -> Result<TrellisRows<'a>, ExecError> {
        let PreparedTerm::Trellis {
            codes,
            scales,
            bits,
            states_log2,
            ..
        } = term
        else {
            return Err(damaged("", "not a trellis term".to_string()));
        };
        let shape = (self.rows, self.cols);
        let (tiles, steps) = (codes.bytes()?, scales.bytes()?);
        TrellisRows::new(shape, *states_log2, bits, tiles, steps)
            .map_err(|e| damaged(&codes.weight, e.to_string()))
    }

    fn float_rows<'a>(
        &self,
        data: &'a [u8],
        format: Float,
        transposed: bool,
    ) -> float::FloatRows<'a> {
        float::FloatRows {
            data,
            format,
            rows: self.rows,
            cols: self.cols,
            transposed,
        }
    }

    fn quant_rows<'a>(&self, term: &'a PreparedTerm) -> Result<QuantRows<'a>, ExecError> {
        let PreparedTerm::Quant {
            codes,
            scales,
            zeros,
            scheme,
            group,
            ..
        } = term
        else {
            return Err(damaged("", "not a quantized term".to_string()));
        };
        let zeros = zeros.as_ref().map(Stored::bytes).transpose()?;
        let shape = (self.rows, self.cols);
        QuantRows::new(
            shape,
            *scheme,
            *group,
            codes.bytes()?,
            scales.bytes()?,
            zeros,
        )
        .map_err(|e| damaged(&codes.weight, e.to_string()))
    }

    fn csr<'a>(
        &self,
        values: &'a Stored,
        columns: &'a Stored,
        offsets: &'a Stored,
    ) -> Result<CsrView<'a>, ExecError> {
        Ok(CsrView {
            rows: self.rows,
            cols: self.cols,
            values: values.bytes()?,
            columns: columns.bytes()?,
            offsets: offsets.bytes()?,
        })
    }

    fn columns<'a>(
        &self,
        columns: &'a [u32],
        values: &'a Stored,
    ) -> Result<ColumnsView<'a>, ExecError> {
        Ok(ColumnsView {
            rows: self.rows,
            cols: self.cols,
            columns,
            values: values.bytes()?,
        })
    }
}

impl PreparedTerm {
    fn rotation(&self) -> Option<Sides> {
        match self {
            PreparedTerm::Quant { rotation, .. } | PreparedTerm::Trellis { rotation, .. } => {
                *rotation
            }
            _ => None,
        }
    }
}

fn add(out: &mut [f32], other: &[f32]) {
    out.iter_mut().zip(other).for_each(|(o, x)| *o += x);
}

impl Factor {
    fn view(&self) -> Result<FactorData<'_>, ExecError> {
        Ok(FactorData {
            format: self.format,
            data: self.data.bytes()?,
            scales: self.scales.as_ref().map(Stored::bytes).transpose()?,
        })
    }
}
