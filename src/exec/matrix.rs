//! A matrix `Σ terms`, located and checked once, multiplied straight from the mapped files.

mod release;

use super::kernels::low_rank::{FactorData, LowRankView};
use super::kernels::quant::{self, Int8Activations, QuantRows};
use super::kernels::sparse::{self, ColumnsView, CsrView};
use super::kernels::{Write, float, low_rank};
use super::{ExecError, Pool, Without};
use crate::ir::{
    FactorRef, LowRankTerm, Matrix, Module, QuantTerm, SparseTerm, Term, WeightId, WeightView,
};
use crate::numeric::float::Float;
use crate::numeric::{Block, FactorFormat, Group, Scheme};
use crate::store::{Located, Reader, StoreError};
use crate::weights::read::decode_f32;
use crate::weights::{DType, WeightsError};

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
    },
    Quant {
        codes: Stored,
        scales: Stored,
        zeros: Option<Stored>,
        scheme: Scheme,
        group: Group,
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
        Ok(self.located.bytes().map_err(fault)?)
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
            Term::Dense(_) | Term::Quant(_) => true,
        });
        let terms: Result<Vec<PreparedTerm>, ExecError> = kept.map(|t| preparer.term(t)).collect();
        Ok(Self {
            rows,
            cols,
            terms: terms?,
        })
    }

    /// Whether a term could use activations rounded to int8.
    pub(super) fn is_quantized(&self) -> bool {
        let quant = |t: &PreparedTerm| matches!(t, PreparedTerm::Quant { .. });
        self.terms.iter().any(quant)
    }

    /// `out[t, o] = Σ_i x[t, i] · W[o, i]` for `x` `[tokens, in]`.
    ///
    /// With `rounded`, quantized terms take the activations from there.
    pub(super) fn multiply(
        &self,
        pool: &Pool,
        x: &[f32],
        rounded: Option<&Int8Activations>,
        out: &mut [f32],
    ) -> Result<(), ExecError> {
        if self.terms.is_empty() {
            out.fill(0.0);
        }
        let tokens = x.len() / self.cols.max(1);
        let mut write = Write::Overwrite;
        for term in &self.terms {
            self.add_term(pool, term, (x, tokens), rounded, write, out)?;
            write = Write::Add;
        }
        Ok(())
    }

    fn add_term(
        &self,
        pool: &Pool,
        term: &PreparedTerm,
        (x, tokens): (&[f32], usize),
        rounded: Option<&Int8Activations>,
        write: Write,
        out: &mut [f32],
    ) -> Result<(), ExecError> {
        match term {
            PreparedTerm::Dense {
                data,
                format,
                transposed,
            } => {
                let w = self.float_rows(data.bytes()?, *format, *transposed);
                float::matmul(pool, &w, x, tokens, write, out);
            }
            PreparedTerm::Quant { .. } => {
                let w = self.quant_rows(term)?;
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
                } => {
                    let w = self.float_rows(data.bytes()?, *format, *transposed);
                    float::decode_row(&w, row, &mut scratch);
                    add(out, &scratch);
                }
                PreparedTerm::Quant { .. } => {
                    quant::decode_row(&self.quant_rows(term)?, row, &mut scratch);
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
            }
        }
        Ok(())
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

impl Preparer<'_> {
    fn stored(&self, id: WeightId) -> Result<Stored, ExecError> {
        let absent = || StoreError::Absent(id.to_string());
        let weight = self.module.weight(id).ok_or_else(absent)?;
        Ok(Stored {
            located: self.reader.locate(self.module, weight)?,
            weight: weight.name.clone(),
        })
    }

    fn term(&self, term: &Term) -> Result<PreparedTerm, ExecError> {
        Ok(match term {
            Term::Dense(view) => self.dense(view)?,
            Term::Quant(q) => self.quant(q)?,
            Term::LowRank(l) => self.low_rank(l)?,
            Term::Sparse(s) => self.sparse(s)?,
            Term::Columns(c) => {
                let indices = self.stored(c.columns)?;
                let word = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap_or_default());
                let columns: Vec<u32> = indices.bytes()?.chunks_exact(4).map(word).collect();
                if columns.iter().any(|&c| c as usize >= self.cols) {
                    let problem = format!("a column beyond the last, {}", self.cols);
                    return Err(damaged(&indices.weight, problem));
                }
                let values = self.stored(c.values)?;
                let values = values.expect(self.rows * columns.len() * 2)?;
                PreparedTerm::Columns { columns, values }
            }
        })
    }

    fn dense(&self, view: &WeightView) -> Result<PreparedTerm, ExecError> {
        let mut data = self.stored(view.weight)?;
        let dtype = self
            .module
            .weight(view.weight)
            .map_or(DType::F32, |w| w.dtype);
        let Some(format) = dtype.as_float() else {
            let problem = format!("a matrix of {} cannot be multiplied", dtype.name());
            return Err(damaged(&data.weight, problem));
        };
        let entries = (self.rows * self.cols) as u64;
        let bytes = dtype.bytes_for(entries).unwrap_or(u64::MAX);
        let skip = bytes.checked_mul(view.index.unwrap_or(0));
        let fits = skip.is_some_and(|s| s.saturating_add(bytes) <= data.located.len);
        if !fits {
            let problem = format!("{} bytes do not hold the matrix", data.located.len);
            return Err(damaged(&data.weight, problem));
        }
        data.located.offset += skip.unwrap_or(0);
        data.located.len = bytes;
        Ok(PreparedTerm::Dense {
            data,
            format,
            transposed: view.transposed,
        })
    }

    fn quant(&self, q: &QuantTerm) -> Result<PreparedTerm, ExecError> {
        let zeros = match q.zeros {
            Some(id) => Some(self.stored(id)?),
            None => None,
        };
        let (codes, scales) = (self.stored(q.codes)?, self.stored(q.scales)?);
        let parts = (codes.bytes()?, scales.bytes()?);
        let given = zeros.as_ref().map(Stored::bytes).transpose()?;
        let shape = (self.rows, self.cols);
        QuantRows::new(shape, q.scheme, q.group, parts.0, parts.1, given)
            .map_err(|e| damaged(&codes.weight, e.to_string()))?;
        Ok(PreparedTerm::Quant {
            codes,
            scales,
            zeros,
            scheme: q.scheme,
            group: q.group,
        })
    }

    fn sparse(&self, s: &SparseTerm) -> Result<PreparedTerm, ExecError> {
        let nnz = usize::try_from(s.nnz)
            .map_err(|_| StoreError::TooLarge("of a sparse term".to_string()))?;
        let index = if self.cols > 65536 { 4 } else { 2 };
        let values = self.stored(s.values)?.expect(nnz * 2)?;
        let columns = self.stored(s.columns)?.expect(nnz * index)?;
        let offsets = self.stored(s.offsets)?.expect((self.rows + 1) * 4)?;
        let view = CsrView {
            rows: self.rows,
            cols: self.cols,
            values: values.bytes()?,
            columns: columns.bytes()?,
            offsets: offsets.bytes()?,
        };
        if let Err(problem) = view.check() {
            return Err(damaged(&offsets.weight, problem.to_string()));
        }
        Ok(PreparedTerm::Csr {
            values,
            columns,
            offsets,
        })
    }

    fn low_rank(&self, l: &LowRankTerm) -> Result<PreparedTerm, ExecError> {
        let (u, v) = (self.factor(&l.u)?, self.factor(&l.v)?);
        let view = LowRankView {
            rows: self.rows,
            cols: self.cols,
            blocks: &l.blocks,
            u: u.view()?,
            v: v.view()?,
        };
        view.check()
            .map_err(|e| damaged(&u.data.weight, e.to_string()))?;
        Ok(PreparedTerm::LowRank {
            blocks: l.blocks.clone(),
            u,
            v,
        })
    }

    fn factor(&self, f: &FactorRef) -> Result<Factor, ExecError> {
        let scales = match f.scales {
            Some(id) => Some(self.stored(id)?),
            None => None,
        };
        Ok(Factor {
            format: f.format,
            data: self.stored(f.data)?,
            scales,
        })
    }
}
