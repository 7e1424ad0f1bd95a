//! Gradients through matrices and by what their terms store; weights that change between runs.

use std::collections::HashMap;

use super::{PreparedMatrix, PreparedTerm, Stored, damaged};
use crate::exec::kernels::grad::{self, low_rank as factors, terms};
use crate::exec::kernels::low_rank::LowRankView;
use crate::exec::kernels::quant::{self, QuantRows};
use crate::exec::kernels::trellis::{self, TrellisRows};
use crate::exec::kernels::{float, hadamard};
use crate::exec::{ExecError, Pool};
use crate::ir::Part;
use crate::store::Located;
use bytes::Bytes;
use faer::Accum;
use half::f16;

/// Little-endian bytes of `count` scales of one.
fn ones(count: usize) -> Vec<u8> {
    f16::ONE.to_le_bytes().repeat(count)
}

impl PreparedMatrix {
    /// `dx = (Σ terms)ᵀ dy` for `dy` `[tokens, out]`.
    pub(in crate::exec) fn transposed(
        &self,
        pool: &Pool,
        dy: &[f32],
        dx: &mut [f32],
    ) -> Result<(), ExecError> {
        dx.fill(0.0);
        for term in &self.terms {
            let sides = term.rotation();
            let turned = sides.and_then(|s| s.output).map(|side| {
                let mut turned = dy.to_vec();
                hadamard::rotate(pool, &side, &mut turned, self.rows);
                turned
            });
            let dy = turned.as_deref().unwrap_or(dy);
            match sides.and_then(|s| s.input) {
                None => self.add_transposed(pool, term, dy, dx)?,
                Some(side) => {
                    let mut part = vec![0f32; dx.len()];
                    self.add_transposed(pool, term, dy, &mut part)?;
                    hadamard::unrotate(pool, &side, &mut part, self.cols);
                    super::add(dx, &part);
                }
            }
        }
        Ok(())
    }

    /// One term in its own coordinates.
    fn add_transposed(
        &self,
        pool: &Pool,
        term: &PreparedTerm,
        dy: &[f32],
        dx: &mut [f32],
    ) -> Result<(), ExecError> {
        let (shape, cols) = ((self.rows, self.cols), self.cols.max(1));
        match term {
            PreparedTerm::Dense {
                data,
                format,
                transposed,
                ..
            } => {
                let w = self.float_rows(data.bytes()?, *format, *transposed);
                grad::transposed(pool, shape, dy, dx, Accum::Add, |rows, out| {
                    let each = rows.zip(out.chunks_mut(cols));
                    each.for_each(|(row, out)| float::decode_row(&w, row, out));
                });
            }
            PreparedTerm::Quant { .. } => {
                let w = self.quant_rows(term)?;
                grad::transposed(pool, shape, dy, dx, Accum::Add, |rows, out| {
                    let each = rows.zip(out.chunks_mut(cols));
                    each.for_each(|(row, out)| quant::decode_row(&w, row, out));
                });
            }
            PreparedTerm::Trellis { .. } => {
                let w = self.trellis_rows(term)?;
                grad::transposed(pool, shape, dy, dx, Accum::Add, |rows, out| {
                    trellis::decode_rows(&w, rows, out);
                });
            }
            PreparedTerm::LowRank { .. } => {
                factors::transposed(pool, &self.low_rank_view(term)?, dy, dx);
            }
            PreparedTerm::Csr {
                values,
                columns,
                offsets,
            } => {
                let w = self.csr(values, columns, offsets)?;
                grad::transposed(pool, shape, dy, dx, Accum::Add, |rows, out| {
                    out.fill(0.0);
                    let each = rows.zip(out.chunks_mut(cols));
                    each.for_each(|(row, out)| super::sparse::add_row_csr(&w, row, out));
                });
            }
            PreparedTerm::Columns { columns, values } => {
                let w = self.columns(columns, values)?;
                grad::transposed(pool, shape, dy, dx, Accum::Add, |rows, out| {
                    out.fill(0.0);
                    let each = rows.zip(out.chunks_mut(cols));
                    each.for_each(|(row, out)| super::sparse::add_row_columns(&w, row, out));
                });
            }
            PreparedTerm::Custom(custom) => {
                self.decode_custom(custom, |decode| {
                    grad::transposed(pool, shape, dy, dx, Accum::Add, decode);
                })?;
            }
        }
        Ok(())
    }

    fn low_rank_view<'a>(&self, term: &'a PreparedTerm) -> Result<LowRankView<'a>, ExecError> {
        let PreparedTerm::LowRank { blocks, u, v } = term else {
            return Err(damaged("", "not a low-rank term".to_string()));
        };
        Ok(LowRankView {
            rows: self.rows,
            cols: self.cols,
            blocks,
            u: u.view()?,
            v: v.view()?,
        })
    }

    /// The one term of a matrix that stands for its term.
    fn only(&self) -> Result<&PreparedTerm, ExecError> {
        let term = self.terms.first();
        term.ok_or_else(|| damaged("", "a matrix without its term".to_string()))
    }

    /// Gradients by U and V, by way of the factors.
    pub(in crate::exec) fn factors(
        &self,
        pool: &Pool,
        dy: &[f32],
        x: &[f32],
    ) -> Result<[Vec<f32>; 2], ExecError> {
        let view = self.low_rank_view(self.only()?)?;
        Ok(factors::factors(pool, &view, dy, x))
    }

    /// From the gradient by the matrix, in the term's coordinates, to that by a part of the term.
    pub(in crate::exec) fn part(
        &self,
        pool: &Pool,
        of: Part,
        dw: &[f32],
    ) -> Result<Vec<f32>, ExecError> {
        let (term, shape) = (self.only()?, (self.rows, self.cols));
        let unfit = || damaged("", format!("a gradient by {} of another term", of.name()));
        Ok(match (of, term) {
            (Part::Codes, _) => dw.to_vec(),
            (Part::Dense, PreparedTerm::Dense { transposed, .. }) => match transposed {
                true => terms::turned(dw, self.rows, self.cols),
                false => dw.to_vec(),
            },
            (
                Part::Scales,
                PreparedTerm::Quant {
                    codes,
                    scales,
                    zeros,
                    scheme,
                    group,
                    ..
                },
            ) => {
                let ones = ones(scales.bytes()?.len() / 2);
                let zeros = zeros.as_ref().map(Stored::bytes).transpose()?;
                let unit = QuantRows::new(shape, *scheme, *group, codes.bytes()?, &ones, zeros);
                let unit = unit.map_err(|e| damaged(&codes.weight, e.to_string()))?;
                terms::scales(pool, shape, *group, dw, |row, out| {
                    quant::decode_row(&unit, row, out);
                })
            }
            (Part::Zeros, PreparedTerm::Quant { scales, group, .. }) => {
                let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
                let scales: Vec<f32> = scales.bytes()?.chunks_exact(2).map(half).collect();
                terms::zeros(pool, shape, *group, dw, &scales)
            }
            (
                Part::Scales,
                PreparedTerm::Trellis {
                    codes,
                    scales,
                    bits,
                    states_log2,
                    ..
                },
            ) => {
                let ones = ones(scales.bytes()?.len() / 2);
                let unit = TrellisRows::new(shape, *states_log2, bits, codes.bytes()?, &ones);
                let unit = unit.map_err(|e| damaged(&codes.weight, e.to_string()))?;
                terms::stripe_scales(pool, shape, dw, |first, out| {
                    let rows = first..first + out.len() / self.cols.max(1);
                    trellis::decode_rows(&unit, rows, out);
                })
            }
            (Part::U | Part::V, PreparedTerm::LowRank { .. }) => {
                let [du, dv] = factors::factors_of(pool, &self.low_rank_view(term)?, dw);
                if of == Part::U { du } else { dv }
            }
            (
                Part::Values,
                PreparedTerm::Csr {
                    values,
                    columns,
                    offsets,
                },
            ) => terms::entries(&self.csr(values, columns, offsets)?, dw),
            (Part::Values, PreparedTerm::Columns { columns, values }) => {
                terms::column_entries(&self.columns(columns, values)?, dw)
            }
            (Part::Tensor(at), PreparedTerm::Custom(custom)) => {
                let made = self.custom_gradients(custom, dw)?;
                made.into_iter().nth(usize::from(at)).ok_or_else(unfit)?
            }
            _ => return Err(unfit()),
        })
    }

    /// Puts other bytes, of the same lengths, in the place of weights.
    pub(in crate::exec) fn replace(
        &mut self,
        bytes: &HashMap<String, Bytes>,
    ) -> Result<(), ExecError> {
        let mut of = |stored: &mut Stored| -> Result<(), ExecError> {
            let Some(bytes) = bytes.get(&stored.weight) else {
                return Ok(());
            };
            let len = bytes.len() as u64;
            if len != stored.located.len {
                let problem = format!("{len} bytes in place of {}", stored.located.len);
                return Err(damaged(&stored.weight, problem));
            }
            stored.located = Located {
                source: bytes.clone().into(),
                offset: 0,
                len,
            };
            Ok(())
        };
        for term in &mut self.terms {
            match term {
                PreparedTerm::Dense { data, kept, .. } => {
                    of(data)?;
                    kept.release();
                }
                PreparedTerm::Quant {
                    codes,
                    scales,
                    zeros,
                    ..
                } => {
                    of(codes)?;
                    of(scales)?;
                    zeros.iter_mut().try_for_each(&mut of)?;
                }
                PreparedTerm::Trellis { codes, scales, .. } => {
                    of(codes)?;
                    of(scales)?;
                }
                PreparedTerm::LowRank { u, v, .. } => {
                    for factor in [u, v] {
                        of(&mut factor.data)?;
                        factor.scales.iter_mut().try_for_each(&mut of)?;
                    }
                }
                PreparedTerm::Csr { values, .. } | PreparedTerm::Columns { values, .. } => {
                    of(values)?;
                }
                PreparedTerm::Custom(custom) => {
                    let mut tensors = custom.tensors.iter_mut();
                    tensors.try_for_each(|t| of(&mut t.data))?;
                }
            }
        }
        Ok(())
    }
}
