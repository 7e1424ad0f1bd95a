//! `kmeans4.codebook(codes=@c, values=@v)`: entry [r, c] is `values[r, codes[r, c]]`.
//!
//! `codes` are `u4[rows, cols]`, packed by rows, low half first, with a half byte of zeros at the end of odd
//! rows; `values` are `f16[rows, 16]`.

use std::ops::Range;

use half::f16;
use hlrc_pass::prelude::*;
use hlrc_pass::serde_json::{Map, json};

/// Entries of a codebook.
pub const ENTRIES: usize = 16;

/// Full name of the kind.
pub const NAME: &str = "kmeans4.codebook";

/// The kind.
pub struct Codebook;

/// A term's parts, checked.
struct Parts<'a> {
    codes: &'a [u8],
    values: &'a [u8],
    row_bytes: usize,
    cols: usize,
}

impl<'a> Parts<'a> {
    fn of(term: &CustomView<'a>) -> Result<Self, PassError> {
        let row_bytes = term.cols.div_ceil(2);
        Ok(Self {
            codes: term.tensor("codes", DType::U8, &[term.rows, row_bytes])?,
            values: term.tensor("values", DType::F16, &[term.rows, ENTRIES])?,
            row_bytes,
            cols: term.cols,
        })
    }

    /// The codebook of a row.
    fn book(&self, row: usize) -> [f32; ENTRIES] {
        let bytes = &self.values[row * ENTRIES * 2..(row + 1) * ENTRIES * 2];
        std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }

    fn code(&self, row: usize, col: usize) -> usize {
        let byte = self.codes[row * self.row_bytes + col / 2];
        usize::from(byte >> (4 * (col % 2)) & 15)
    }
}

impl TermKind for Codebook {
    fn name(&self) -> &str {
        NAME
    }

    fn summary(&self) -> &str {
        "a codebook of 16 values for each row, with 4-bit codes"
    }

    fn check(&self, term: &CustomView<'_>) -> Result<(), PassError> {
        Parts::of(term).map(|_| ())
    }

    fn add_rows(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), PassError> {
        let parts = Parts::of(term)?;
        for (row, out) in rows.zip(out.chunks_mut(parts.cols)) {
            let book = parts.book(row);
            for (col, slot) in out.iter_mut().enumerate() {
                *slot += book[parts.code(row, col)];
            }
        }
        Ok(())
    }

    /// Activations are summed by code first: then 16 products make a row.
    fn multiply(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        x: &[f32],
        out: &mut [f32],
    ) -> Option<Result<(), PassError>> {
        let parts = match Parts::of(term) {
            Ok(parts) => parts,
            Err(error) => return Some(Err(error)),
        };
        let width = rows.len();
        for (x, out) in x.chunks(parts.cols).zip(out.chunks_mut(width)) {
            for (row, slot) in rows.clone().zip(out) {
                let mut sums = [0f32; ENTRIES];
                for (col, x) in x.iter().enumerate() {
                    sums[parts.code(row, col)] += x;
                }
                let products = sums.iter().zip(parts.book(row));
                *slot = products.map(|(sum, value)| sum * value).sum();
            }
        }
        Some(Ok(()))
    }

    /// A value's gradient is the sum of those of the entries that have it.
    fn backward(
        &self,
        term: &CustomView<'_>,
        dw: &[f32],
    ) -> Option<Result<Vec<Vec<f32>>, PassError>> {
        let parts = match Parts::of(term) {
            Ok(parts) => parts,
            Err(error) => return Some(Err(error)),
        };
        let mut values = vec![0f32; term.rows * ENTRIES];
        let rows = dw.chunks(parts.cols).zip(values.chunks_mut(ENTRIES));
        for (row, (dw, values)) in rows.enumerate() {
            for (col, gradient) in dw.iter().enumerate() {
                values[parts.code(row, col)] += gradient;
            }
        }
        Some(Ok(vec![vec![0.0; parts.codes.len()], values]))
    }

    /// `GatherElements(values, codes)`, the codes as 4-bit integers of opset 21.
    fn onnx(&self, term: &CustomView<'_>) -> Result<Option<OnnxForm>, PassError> {
        let parts = Parts::of(term)?;
        if term.cols % 2 == 1 {
            // ONNX packs across rows; odd ones would need other bytes.
            return Ok(None);
        }
        let tensor = |name: &str, dtype, cols: usize, bytes: &[u8]| OnnxTensor {
            name: name.to_string(),
            dtype,
            shape: vec![term.rows as u64, cols as u64],
            bytes: bytes.to_vec(),
        };
        let node = |op: &str, inputs: &[&str], output: &str, attrs: Map<String, _>| OnnxNode {
            op_type: op.to_string(),
            inputs: inputs.iter().map(|i| i.to_string()).collect(),
            output: output.to_string(),
            attrs,
        };
        let with = |name: &str, value: i64| Map::from_iter([(name.to_string(), json!(value))]);
        Ok(Some(OnnxForm {
            opset: 21,
            tensors: vec![
                tensor("codes", DType::U4, term.cols, parts.codes),
                tensor("values", DType::F16, ENTRIES, parts.values),
            ],
            nodes: vec![
                node("Cast", &["codes"], "indices", with("to", 7)), // int64
                node("Cast", &["values"], "floats", with("to", 1)), // float
                node(
                    "GatherElements",
                    &["floats", "indices"],
                    "matrix",
                    with("axis", 1),
                ),
            ],
            output: "matrix".to_string(),
        }))
    }
}
