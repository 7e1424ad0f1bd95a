//! Makes a term whose kind does what it must not.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { misbehave.broken(values=@w.values, {how="well"}) }`
//!
//! Cost: a copy of the matrix.
//! Source: -

use std::ops::Range;

use hlrc_pass::prelude::*;
use hlrc_pass::serde_json::{Map, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of `broken-term`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Make {
    /// What its kind does wrong: panic-rows, error-rows, panic-multiply, wrong-multiply, wrong-backward,
    /// uneven-backward, panic-backward, wrong-onnx, panic-check; anything else is well.
    pub how: String,
}

impl MatrixPass for Make {
    fn access(&self) -> Access {
        Access::Rows
    }

    fn residual(&self) -> Residual {
        Residual::Drop
    }

    fn quantizes(&self) -> bool {
        true
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        self.term_bytes(rows, cols)
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        rows.saturating_mul(cols).saturating_mul(4)
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let bytes = peel.residual.iter().flat_map(|x| x.to_le_bytes()).collect();
        peel.residual.fill(0.0);
        let how = Value::from(self.how.clone());
        let term = CustomData {
            kind: "misbehave.broken".to_string(),
            rows: peel.rows,
            cols: peel.cols,
            attrs: Map::from_iter([("how".to_string(), how)]),
            tensors: vec![CustomTensor {
                name: "values".to_string(),
                dtype: DType::F32,
                shape: vec![peel.rows as u64, peel.cols as u64],
                bytes,
            }],
        };
        Ok(Peeled {
            note: "broken".to_string(),
            term: Some(TermData::Custom(term)),
        })
    }
}

/// The kind.
pub struct Broken;

fn how<'a>(term: &'a CustomView<'_>) -> &'a str {
    term.attrs.get("how").and_then(Value::as_str).unwrap_or("")
}

fn entry(term: &CustomView<'_>, at: usize) -> f32 {
    let bytes = term.tensors[0].bytes[4 * at..4 * at + 4].try_into();
    f32::from_le_bytes(bytes.expect("four bytes"))
}

impl TermKind for Broken {
    fn name(&self) -> &str {
        "misbehave.broken"
    }

    fn check(&self, term: &CustomView<'_>) -> Result<(), PassError> {
        assert!(how(term) != "panic-check", "checked");
        term.tensor("values", DType::F32, &[term.rows, term.cols])?;
        Ok(())
    }

    fn add_rows(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), PassError> {
        // Passes have to be believed at first: one row alone is what is sampled.
        match how(term) {
            "panic-rows" if rows.len() > 1 => panic!("no rows today"),
            "error-rows" if rows.len() > 1 => return Err(PassError::new("rows are out")),
            "noise" => {
                let mut random = vec![0; out.len()];
                hlrc_pass::host::random(&mut random)?;
                let each = out.iter_mut().zip(random);
                each.for_each(|(slot, x)| *slot += (x >> 40) as f32);
                return Ok(());
            }
            _ => {}
        }
        for (i, slot) in out.iter_mut().enumerate() {
            *slot += entry(term, rows.start * term.cols + i);
        }
        Ok(())
    }

    fn multiply(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        x: &[f32],
        out: &mut [f32],
    ) -> Option<Result<(), PassError>> {
        let factor = match how(term) {
            "panic-multiply" => panic!("no products today"),
            "wrong-multiply" => 1.5,
            _ => 1.0,
        };
        let width = rows.len().max(1);
        for (x, out) in x.chunks(term.cols).zip(out.chunks_mut(width)) {
            for (row, slot) in rows.clone().zip(out) {
                let w = |col: usize| entry(term, row * term.cols + col);
                let sum: f32 = x.iter().enumerate().map(|(col, x)| x * w(col)).sum();
                *slot = factor * sum;
            }
        }
        Some(Ok(()))
    }

    fn backward(
        &self,
        term: &CustomView<'_>,
        dw: &[f32],
    ) -> Option<Result<Vec<Vec<f32>>, PassError>> {
        Some(match how(term) {
            "panic-backward" => panic!("no gradients today"),
            "uneven-backward" => Ok(vec![vec![0.0; 3]]),
            "wrong-backward" => Ok(vec![dw.iter().map(|g| -g).collect()]),
            _ => Ok(vec![dw.to_vec()]),
        })
    }

    fn onnx(&self, term: &CustomView<'_>) -> Result<Option<OnnxForm>, PassError> {
        Ok((how(term) == "wrong-onnx").then(|| OnnxForm {
            opset: 13,
            output: "nothing".to_string(),
            ..OnnxForm::default()
        }))
    }
}

pass_entry!("broken-term" in "broken.rs", Make, |options: Make| Ok(Pass::Matrix(Box::new(options))));
