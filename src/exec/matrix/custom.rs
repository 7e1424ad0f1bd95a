//! Products with terms of plugins' kinds.

use std::ops::Range;
use std::sync::Mutex;

use serde_json::{Map, Value};

use super::{ExecError, Pool, PreparedMatrix, Preparer, StoreError, Stored, Write};
use crate::ir::CustomTerm;
use crate::pass::PassError;
use crate::pass::kind::{self, CustomView, TensorView, TermKind};
use crate::weights::DType;

/// Rows of the matrix that are decoded or multiplied at a time.
const TILE_ROWS: usize = 64;

/// A term of a plugin's kind, located and checked.
pub(super) struct PreparedCustom {
    kind: &'static dyn TermKind,
    attrs: Map<String, Value>,
    pub(super) tensors: Vec<CustomStored>,
}

/// One of its tensors.
pub(super) struct CustomStored {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    pub(super) data: Stored,
}

impl Preparer<'_> {
    pub(super) fn custom(&self, term: &CustomTerm) -> Result<PreparedCustom, ExecError> {
        let name = term.tensors.first();
        let weight = name.and_then(|(_, id)| self.module.weight(*id));
        let weight = weight.map_or(String::new(), |w| w.name.clone());
        let mut tensors = Vec::with_capacity(term.tensors.len());
        for (name, id) in &term.tensors {
            let (dtype, shape) = match self.module.weight(*id) {
                Some(w) => (w.dtype, w.dims.clone()),
                None => (DType::U8, Vec::new()),
            };
            let bytes = dtype.bytes_for_shape(&shape).unwrap_or(u64::MAX);
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            tensors.push(CustomStored {
                name: name.clone(),
                dtype,
                shape,
                data: self.stored(*id)?.expect(bytes)?,
            });
        }
        let prepared = PreparedCustom {
            kind: kind::needed(&term.kind).map_err(|e| StoreError::Kind {
                weight: weight.clone(),
                problem: e.to_string(),
            })?,
            attrs: term.attrs.clone(),
            tensors,
        };
        let view = prepared.view(self.rows, self.cols)?;
        let checked = prepared.kind.check(&view);
        checked.map_err(|e| super::damaged(&weight, e.to_string()))?;
        Ok(prepared)
    }
}

impl PreparedCustom {
    fn view(&self, rows: usize, cols: usize) -> Result<CustomView<'_>, ExecError> {
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for t in &self.tensors {
            tensors.push(TensorView {
                name: &t.name,
                dtype: t.dtype,
                shape: &t.shape,
                bytes: t.data.bytes()?,
            });
        }
        Ok(CustomView {
            rows,
            cols,
            attrs: &self.attrs,
            tensors,
        })
    }

    fn weight(&self) -> &str {
        self.tensors.first().map_or("", |t| &t.data.weight)
    }
}

impl PreparedMatrix {
    /// `x Wᵀ` by tiles of rows: by the kind's own kernel, or from decoded rows.
    pub(super) fn multiply_custom(
        &self,
        pool: &Pool,
        term: &PreparedCustom,
        x: &[f32],
        tokens: usize,
        write: Write,
        out: &mut [f32],
    ) -> Result<(), ExecError> {
        let view = term.view(self.rows, self.cols)?;
        let failed: Mutex<Option<PassError>> = Mutex::new(None);
        pool.split(out, self.rows, (tokens, TILE_ROWS), |mut tile| {
            let rows = tile.cols();
            let mut product = vec![0f32; tokens * rows.len()];
            let own = term.kind.multiply(&view, rows.clone(), x, &mut product);
            let done = own.unwrap_or_else(|| {
                let mut w = vec![0f32; rows.len() * self.cols];
                term.kind.add_rows(&view, rows.clone(), &mut w)?;
                multiply(&w, self.cols, x, rows.len(), &mut product);
                Ok(())
            });
            if let Err(error) = done {
                // Any of the errors will do; the product is thrown away.
                *failed.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
                return;
            }
            for (token, values) in product.chunks(rows.len().max(1)).enumerate() {
                let slots = tile.row_mut(token).iter_mut().zip(values);
                slots.for_each(|(slot, value)| write.put(slot, *value));
            }
        });
        match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            None => Ok(()),
            Some(error) => Err(refused(term.weight(), &error)),
        }
    }

    /// Gives `work` a function that decodes rows of the term, from any thread.
    pub(super) fn decode_custom(
        &self,
        term: &PreparedCustom,
        work: impl FnOnce(&(dyn Fn(Range<usize>, &mut [f32]) + Sync)),
    ) -> Result<(), ExecError> {
        let view = term.view(self.rows, self.cols)?;
        let failed: Mutex<Option<PassError>> = Mutex::new(None);
        work(&|rows, out| {
            out.fill(0.0);
            if let Err(error) = term.kind.add_rows(&view, rows, out) {
                *failed.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
            }
        });
        match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            None => Ok(()),
            Some(error) => Err(refused(term.weight(), &error)),
        }
    }

    /// From the gradient by the matrix, those by the term's tensors; zeros where its kind has no rule.
    pub(super) fn custom_gradients(
        &self,
        term: &PreparedCustom,
        dw: &[f32],
    ) -> Result<Vec<Vec<f32>>, ExecError> {
        let view = term.view(self.rows, self.cols)?;
        let sizes = view.tensors.iter().map(|t| t.elements());
        let sizes: Vec<usize> = sizes.collect();
        let made = match term.kind.backward(&view, dw) {
            None => return Ok(sizes.into_iter().map(|n| vec![0.0; n]).collect()),
            Some(made) => made.map_err(|e| refused(term.weight(), &e))?,
        };
        let fit = made.len() == sizes.len() && made.iter().zip(&sizes).all(|(g, n)| g.len() == *n);
        if !fit {
            let what = format!(
                "terms of the kind {}: its gradients are not of its tensors' sizes",
                term.kind.name()
            );
            return Err(refused(term.weight(), &PassError::new(what)));
        }
        Ok(made)
    }

    /// Adds a row of the term.
    pub(super) fn add_custom_row(
        &self,
        term: &PreparedCustom,
        row: usize,
        out: &mut [f32],
    ) -> Result<(), ExecError> {
        let view = term.view(self.rows, self.cols)?;
        let done = term.kind.add_rows(&view, row..row + 1, out);
        done.map_err(|e| refused(term.weight(), &e))
    }
}

/// `out[t, r] = Σ x[t, c] · w[r, c]`, summed in a fixed order.
fn multiply(w: &[f32], cols: usize, x: &[f32], rows: usize, out: &mut [f32]) {
    const LANES: usize = 8;
    for (x, out) in x.chunks(cols.max(1)).zip(out.chunks_mut(rows.max(1))) {
        for (w, out) in w.chunks(cols.max(1)).zip(out) {
            let mut sums = [0f32; LANES];
            let (w8, w_rest) = w.as_chunks::<LANES>();
            let (x8, x_rest) = x.as_chunks::<LANES>();
            for (w, x) in w8.iter().zip(x8) {
                let each = sums.iter_mut().zip(w.iter().zip(x));
                each.for_each(|(sum, (w, x))| *sum += w * x);
            }
            let rest: f32 = w_rest.iter().zip(x_rest).map(|(w, x)| w * x).sum();
            *out = sums.iter().sum::<f32>() + rest;
        }
    }
}

fn refused(weight: &str, error: &PassError) -> ExecError {
    ExecError::Store(StoreError::Plugin {
        weight: weight.to_string(),
        problem: error.to_string(),
    })
}
