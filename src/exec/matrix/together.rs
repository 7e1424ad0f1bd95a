//! Products of matrices with the same input.

use super::{PreparedMatrix, PreparedTerm, Sides, add};
use crate::exec::activations::Forms;
use crate::exec::kernels::float::{FloatRows, Panels};
use crate::exec::kernels::quant::{self, Product};
use crate::exec::kernels::{Write, hadamard};
use crate::exec::{ExecError, Pool};
use crate::numeric::hadamard::Rotation as Side;
use std::sync::Arc;

impl PreparedMatrix {
    /// `out[t, o] = Σ_i x[t, i] · W[o, i]` of several matrices.
    ///
    /// Coded terms take rounded activations where there are some. The last such term of each
    /// matrix joins those of the others in one job: a token of a small model spends more time on
    /// the starts and ends of jobs than on some of the products.
    pub(in crate::exec) fn multiply_all(
        pool: &Pool,
        x: &Forms<'_>,
        outs: &mut [(&PreparedMatrix, &mut [f32])],
    ) -> Result<(), ExecError> {
        let mut joined: Vec<(Option<Side>, Vec<Product<'_>>)> = Vec::with_capacity(1);
        for (matrix, out) in outs {
            let matrix: &PreparedMatrix = matrix;
            if matrix.terms.is_empty() {
                out.fill(0.0);
            }
            let last = matrix.terms.iter().rposition(|term| term.joins(x));
            let mut write = Write::Overwrite;
            for (i, term) in matrix.terms.iter().enumerate() {
                if Some(i) != last {
                    matrix.apply(pool, term, x, write, out)?;
                    write = Write::Add;
                }
            }
            let Some(term) = last.and_then(|i| matrix.terms.get(i)) else {
                continue;
            };
            let (side, w) = (term.input(), matrix.quant_rows(term)?);
            let product = Product { w, write, out };
            match joined.iter_mut().find(|(of, _)| *of == side) {
                Some((_, products)) => products.push(product),
                None => joined.push((side, vec![product])),
            }
        }
        for (side, mut products) in joined {
            if let (_, Some(rounded)) = x.of(side) {
                quant::matmul_int8_all(pool, &mut products, rounded);
            }
        }
        Ok(())
    }

    /// The only term and its panels, where it keeps some for products of so many tokens.
    pub(in crate::exec) fn packed(
        &self,
        tokens: usize,
    ) -> Result<Option<(FloatRows<'_>, Arc<Panels>)>, ExecError> {
        let [
            PreparedTerm::Dense {
                data,
                format,
                transposed,
                kept,
            },
        ] = self.terms.as_slice()
        else {
            return Ok(None);
        };
        let w = self.float_rows(data.bytes()?, *format, *transposed);
        Ok(kept.ready(tokens).map(|panels| (w, panels)))
    }

    /// One term, its outputs turned back where they are in other coordinates.
    fn apply(
        &self,
        pool: &Pool,
        term: &PreparedTerm,
        x: &Forms<'_>,
        write: Write,
        out: &mut [f32],
    ) -> Result<(), ExecError> {
        let Some(side) = term.rotation().and_then(|r| r.output) else {
            return self.add_term(pool, term, x, write, out);
        };
        let mut turned = vec![0f32; out.len()];
        self.add_term(pool, term, x, Write::Overwrite, &mut turned)?;
        hadamard::unrotate(pool, &side, &mut turned, self.rows);
        match write {
            Write::Overwrite => out.copy_from_slice(&turned),
            Write::Add => add(out, &turned),
        }
        Ok(())
    }
}

impl PreparedTerm {
    /// The coordinates of the term's inputs.
    fn input(&self) -> Option<Side> {
        self.rotation().and_then(|sides: Sides| sides.input)
    }

    /// Whether the term is a product of codes and rounded activations, straight into the output.
    fn joins(&self, x: &Forms<'_>) -> bool {
        let straight = self.rotation().is_none_or(|sides| sides.output.is_none());
        matches!(self, PreparedTerm::Quant { .. }) && straight && x.of(self.input()).1.is_some()
    }
}
